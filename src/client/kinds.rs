//! The kinds of objects: what each is called, and where the API has it. `list`, `get`, `create`,
//! `set` and `delete` are the same for all of them.

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use super::Api;
use super::named;
use super::problem::Problem;
use super::records::shown;

/// The kinds of objects, as paths of the API name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Organisations that the token may see.
    #[value(alias = "org")]
    Orgs,
    /// API tokens.
    #[value(alias = "token")]
    Tokens,
    /// Targets.
    #[value(alias = "target")]
    Targets,
    /// Credentials of both kinds.
    #[value(alias = "credential")]
    Credentials,
    /// Proxies.
    #[value(alias = "proxy")]
    Proxies,
    /// Rules.
    #[value(alias = "rule")]
    Rules,
    /// Filters.
    #[value(alias = "filter")]
    Filters,
    /// Meters; `requestrocket meters` shows how much of them is used.
    #[value(alias = "meter")]
    Meters,
}

/// What is to be known of a kind.
struct Row {
    /// In paths.
    word: &'static str,
    /// One of them, in words.
    one: &'static str,
    /// How its ids begin.
    prefix: &'static str,
    /// What is submitted to make one.
    schema: &'static str,
}

/// Most objects of a page.
const PAGE: u32 = 500;

impl Kind {
    fn row(self) -> Row {
        let row = |word, one, prefix, schema| Row {
            word,
            one,
            prefix,
            schema,
        };
        match self {
            Self::Orgs => row("orgs", "organisation", "org", "Org"),
            Self::Tokens => row("tokens", "token", "tok", "ApiToken"),
            Self::Targets => row("targets", "target", "tgt", "Target"),
            Self::Credentials => row("credentials", "credential", "crd", "CredentialInput"),
            Self::Proxies => row("proxies", "proxy", "prx", "NewProxy"),
            Self::Rules => row("rules", "rule", "rul", "Rule"),
            Self::Filters => row("filters", "filter", "flt", "Filter"),
            Self::Meters => row("meters", "meter", "mtr", "Meter"),
        }
    }

    /// Its word in paths and commands.
    pub fn word(self) -> &'static str {
        self.row().word
    }

    /// One of them, in words.
    pub fn one(self) -> &'static str {
        self.row().one
    }

    /// The schema of what is submitted.
    pub fn schema(self) -> &'static str {
        self.row().schema
    }

    /// Whether it hangs on other objects.
    pub fn hangs(self) -> bool {
        matches!(self, Self::Rules | Self::Filters | Self::Meters)
    }

    /// Refuses what objects are said to hang on where they hang on nothing.
    ///
    /// # Errors
    /// That is so.
    pub fn takes(self, on: Option<&str>) -> anyhow::Result<()> {
        ensure!(
            on.is_none() || self.hangs(),
            "{} hang on nothing: --on is for rules, filters and meters",
            self.word()
        );
        Ok(())
    }

    /// Whether others can hang on it.
    fn holds(self) -> bool {
        matches!(self, Self::Targets | Self::Credentials | Self::Proxies)
    }

    /// Whether the API finds one by this text in a path.
    pub fn is_direct(self, text: &str) -> bool {
        let is_slug_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_slug = !text.is_empty() && text.bytes().all(is_slug_byte);
        match self {
            Self::Orgs if is_slug => true,
            _ => !self.hangs() && Self::of_id(text) == Some(self),
        }
    }

    /// The kind that an id is of.
    pub fn of_id(id: &str) -> Option<Self> {
        let (prefix, rest) = id.split_once('_')?;
        let is_id = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric());
        let mut kinds = Self::value_variants().iter().copied();
        kinds.find(|kind| is_id && kind.row().prefix == prefix)
    }

    /// The place of all of them that hang on nothing else than the organisation.
    fn all(self, org: &str) -> String {
        match self {
            Self::Orgs => "/orgs".to_owned(),
            _ => format!("/orgs/{org}/{}", self.word()),
        }
    }

    /// The place of one, by what was read of it.
    ///
    /// # Errors
    /// The answer lacks what tells that.
    pub fn place(self, org: &str, object: &Value) -> anyhow::Result<String> {
        let id = object["id"].as_str().context("the answer holds no id")?;
        let parent = object["parent_id"].as_str();
        let holder = parent.and_then(|parent| Some((Self::of_id(parent)?, parent)));
        Ok(match holder.filter(|(kind, _)| kind.holds()) {
            Some((holders, parent)) => {
                format!("{}/{parent}/{}/{id}", holders.all(org), self.word())
            }
            None => format!("{}/{id}", self.all(org)),
        })
    }

    /// The place in which one is made.
    ///
    /// # Errors
    /// What it hangs on is missing, is not wanted, or is not there.
    pub async fn place_for_new(
        self,
        api: &Api,
        org: &str,
        on: Option<&str>,
    ) -> anyhow::Result<String> {
        match on {
            Some(on) => self.on(api, org, on).await,
            None if self.hangs() && self != Self::Meters => bail!(
                "a {} hangs on a target, credential or proxy: name it with --on, by its id or as \
                 in --on proxies/billing",
                self.one()
            ),
            None => Ok(self.all(org)),
        }
    }

    /// The list of those that hang on what `on` names: an id, or a kind and a name.
    async fn on(self, api: &Api, org: &str, on: &str) -> anyhow::Result<String> {
        self.takes(Some(on))?;
        if let Some(holders) = Self::of_id(on).filter(|kind| kind.holds()) {
            return Ok(format!("{}/{on}/{}", holders.all(org), self.word()));
        }
        let named = on.split_once('/').and_then(|(kind, name)| {
            let kind = Self::from_str(kind, true).ok();
            Some((kind.filter(|kind| kind.holds())?, name))
        });
        let Some((holders, name)) = named else {
            bail!(
                "--on {} names no proxy, target or credential: write its id, or as in \
                 --on proxies/billing; `requestrocket list proxies` shows both",
                shown(on)
            );
        };
        let found = Box::pin(named::find(api, (holders, org), None, name)).await?;
        Ok(format!("{}/{}", found.path, self.word()))
    }

    /// Every one of them, or those that hang on something.
    ///
    /// # Errors
    /// `on` names nothing that such objects hang on, or what the control plane said.
    pub async fn objects(
        self,
        api: &Api,
        org: &str,
        on: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        for place in self.places(api, org, on).await? {
            let found = api.list_absolute(&format!("{place}?limit={PAGE}")).await;
            let found = found.map_err(|error| of_nowhere(error, org, on))?;
            items.extend(found["items"].as_array().into_iter().flatten().cloned());
        }
        Ok(items)
    }

    /// The lists of the API that hold them.
    async fn places(self, api: &Api, org: &str, on: Option<&str>) -> anyhow::Result<Vec<String>> {
        if let Some(on) = on {
            return Ok(vec![self.on(api, org, on).await?]);
        }
        if !self.hangs() {
            return Ok(vec![self.all(org)]);
        }
        let own = (self == Self::Meters).then(|| self.all(org));
        let mut places: Vec<String> = own.into_iter().collect();
        for holders in [Self::Credentials, Self::Proxies, Self::Targets] {
            let all = holders.all(org);
            let found = api.list_absolute(&format!("{all}?limit={PAGE}")).await;
            let found = found.map_err(|error| of_nowhere(error, org, None))?;
            let ids = found["items"].as_array().into_iter().flatten();
            let ids = ids.filter_map(|holder| holder["id"].as_str());
            places.extend(ids.map(|id| format!("{all}/{id}/{}", self.word())));
        }
        Ok(places)
    }
}

/// An answer that a list is not there, with what was named and is not.
pub fn of_nowhere(error: anyhow::Error, org: &str, on: Option<&str>) -> anyhow::Error {
    let mut problem = match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => return error,
    };
    if problem.is_not_found() {
        let on = on.map(|on| format!("{} is not there, or ", shown(on)));
        let detail = format!(
            "{}organisation {} is not, or this token is not for it (--org, REQUESTROCKET_ORG)",
            on.unwrap_or_default(),
            shown(org)
        );
        problem.0["detail"] = detail.into();
    }
    problem.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_tells_its_kind_and_is_no_path() {
        assert_eq!(Kind::of_id("prx_01ab"), Some(Kind::Proxies));
        assert_eq!(Kind::of_id("tok_01ab"), Some(Kind::Tokens));
        for wrong in ["req_1", "prx_", "prx_../x", "prx_a?b", "pay"] {
            assert_eq!(Kind::of_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_hangs_on_nothing_is_not_looked_for_on_something() {
        for (kind, on, taken) in [
            (Kind::Credentials, Some("proxies/x"), false),
            (Kind::Orgs, Some("prx_1"), false),
            (Kind::Credentials, None, true),
            (Kind::Rules, Some("proxies/x"), true),
        ] {
            assert_eq!(kind.takes(on).is_ok(), taken, "{kind:?} {on:?}");
        }
    }

    #[test]
    fn each_kind_has_its_place_and_its_schema() {
        let schemas = control::openapi::schemas();
        for (kind, object, expected) in [
            (Kind::Orgs, json!({"id": "org_1"}), "/orgs/org_1"),
            (
                Kind::Tokens,
                json!({"id": "tok_1"}),
                "/orgs/acme/tokens/tok_1",
            ),
            (
                Kind::Proxies,
                json!({"id": "prx_1"}),
                "/orgs/acme/proxies/prx_1",
            ),
            (
                Kind::Rules,
                json!({"id": "rul_1", "parent_id": "tgt_1"}),
                "/orgs/acme/targets/tgt_1/rules/rul_1",
            ),
            (
                Kind::Meters,
                json!({"id": "mtr_1", "parent_id": "org_1"}),
                "/orgs/acme/meters/mtr_1",
            ),
        ] {
            assert_eq!(kind.place("acme", &object).unwrap(), expected);
        }
        for kind in Kind::value_variants() {
            assert!(schemas.contains_key(kind.schema()), "{kind:?}");
            let one = kind.to_possible_value().unwrap();
            assert!(one.matches(kind.word(), false), "{kind:?}");
        }
        assert!(Kind::Rules.place("acme", &json!({})).is_err());
    }
}
