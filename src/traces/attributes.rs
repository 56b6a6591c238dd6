//! Every attribute of our own that spans carry. The table in the tests says what each means, and
//! `docs/traces.md` is made from it (`UPDATE_DOCS=1`).

/// The request's id.
pub const REQUEST_ID: &str = "requestrocket.request.id";
/// The organisation.
pub const ORG_ID: &str = "requestrocket.org.id";
/// The proxy.
pub const PROXY_ID: &str = "requestrocket.proxy.id";
/// The target.
pub const TARGET_ID: &str = "requestrocket.target.id";
/// The configuration version.
pub const VERSION: &str = "requestrocket.config.version";
/// The outcome.
pub const CODE: &str = "requestrocket.code";
/// The caller's credential.
pub const PROXY_CREDENTIAL: &str = "requestrocket.proxy_credential.id";
/// The injected credential.
pub const TARGET_CREDENTIAL: &str = "requestrocket.target_credential.id";
/// Why the caller was answered 401.
pub const AUTH_FAILURE: &str = "requestrocket.auth.failure";
/// Rules that denied.
pub const DENYING_RULES: &str = "requestrocket.rules.denied";
/// Rules in shadow mode.
pub const SHADOW_RULES: &str = "requestrocket.rules.shadow";
/// Limits that refused.
pub const LIMITED_BY: &str = "requestrocket.limits.refused";
/// The meter that refused.
pub const REFUSED_BY: &str = "requestrocket.meters.refused";
/// Meters.
pub const METERS: &str = "requestrocket.meters";
/// What each of them spent.
pub const METERS_SPENT: &str = "requestrocket.meters.spent";
/// Filters.
pub const FILTERS: &str = "requestrocket.filters.changed";
/// Node.
pub const NODE: &str = "requestrocket.node";
/// Stage outcome.
pub const OUTCOME: &str = "requestrocket.stage.outcome";
/// Connection.
pub const REUSED: &str = "requestrocket.connection.reused";

#[cfg(test)]
mod tests {
    use super::*;

    /// An attribute.
    struct Attribute {
        /// Its name.
        name: &'static str,
        /// Its type: `string`, `string[]`, `int`, `int[]` or `boolean`.
        kind: &'static str,
        /// The spans that have it.
        on: &'static str,
        /// What it says.
        meaning: &'static str,
    }

    const fn attribute(
        name: &'static str,
        kind: &'static str,
        on: &'static str,
        meaning: &'static str,
    ) -> Attribute {
        Attribute {
            name,
            kind,
            on,
            meaning,
        }
    }

    /// All of them, in the order of the documentation.
    const ALL: &[Attribute] = &[
        attribute(
            REQUEST_ID,
            "string",
            "SERVER",
            "The id in `requestrocket-request-id`",
        ),
        attribute(
            ORG_ID,
            "string",
            "SERVER",
            "The organisation that owns the proxy",
        ),
        attribute(PROXY_ID, "string", "SERVER", "The proxy that was called"),
        attribute(TARGET_ID, "string", "SERVER", "The proxy's target"),
        attribute(
            VERSION,
            "int",
            "SERVER",
            "The configuration version that decided",
        ),
        attribute(NODE, "string", "SERVER", "The node's name"),
        attribute(
            CODE,
            "string",
            "SERVER",
            "The outcome, as in `requestrocket-proxy-code`",
        ),
        attribute(
            PROXY_CREDENTIAL,
            "string",
            "SERVER, `authenticate`",
            "Id of the credential that the caller proved",
        ),
        attribute(
            TARGET_CREDENTIAL,
            "string",
            "SERVER, `inject`",
            "Id of the credential that was injected",
        ),
        attribute(
            AUTH_FAILURE,
            "string",
            "`authenticate`",
            "Why the caller was answered 401, such as `wrong-key`",
        ),
        attribute(
            DENYING_RULES,
            "string[]",
            "`authorize`",
            "Ids of the rules that denied",
        ),
        attribute(
            SHADOW_RULES,
            "string[]",
            "`authorize`",
            "Ids of rules in shadow mode that would have denied",
        ),
        attribute(
            LIMITED_BY,
            "string[]",
            "`limit`",
            "Windows of the limits that refused",
        ),
        attribute(
            REFUSED_BY,
            "string[]",
            "`limit`",
            "The meter that refused, its window and the cause, such as `mtr_…:minute:empty`",
        ),
        attribute(
            METERS,
            "string[]",
            "`limit`",
            "The meters that it has spent of: ids, or names of limits of the proxy itself",
        ),
        attribute(
            METERS_SPENT,
            "int[]",
            "`limit`",
            "What it has spent of each of them, in their order, over all attempts",
        ),
        attribute(
            FILTERS,
            "string[]",
            "`filter`",
            "Ids of the filters that changed the answer",
        ),
        attribute(
            OUTCOME,
            "string",
            "stages",
            "`pass`, or `end` where the request ended early",
        ),
        attribute(
            REUSED,
            "boolean",
            "CLIENT",
            "Whether the connection had served a request before",
        ),
    ];

    /// Where the table stands in the documentation.
    const BEGIN: &str = "<!-- attributes: made from src/traces/attributes.rs -->\n";
    const END: &str = "<!-- end of attributes -->";

    #[test]
    fn the_documentation_is_made_from_this_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/traces.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (found, after) = rest.split_once(END).unwrap();
        let mut table = "| attribute | type | spans | meaning |\n|---|---|---|---|\n".to_owned();
        for Attribute {
            name,
            kind,
            on,
            meaning,
        } in ALL
        {
            table.push_str(&format!("| `{name}` | {kind} | {on} | {meaning}. |\n"));
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let text = format!("{before}{BEGIN}{table}{END}{after}");
            std::fs::write(path, text).unwrap();
            return;
        }
        assert_eq!(found, table, "run with UPDATE_DOCS=1");
    }

    #[test]
    fn the_table_has_every_name_and_spans_have_no_other() {
        // What is compiled into the program.
        let program = |text: &'static str| text.split("#[cfg(test)]").next().unwrap();
        let own = program(include_str!("attributes.rs"));
        let lines = own.lines().filter(|line| line.starts_with("pub const "));
        let declared: Vec<&str> = lines.filter_map(|line| line.split('"').nth(1)).collect();
        assert!(declared.len() > 10, "{declared:?}");
        let listed = |name: &&str| ALL.iter().any(|attribute| attribute.name == *name);
        assert!(declared.iter().all(listed), "{declared:?}");
        assert_eq!(declared.len(), ALL.len());
        for text in [include_str!("spans.rs"), include_str!("encode.rs")] {
            let text = program(text);
            assert!(!text.contains("\"requestrocket."), "a name of its own");
        }
    }

    #[test]
    fn names_are_unique_and_ours() {
        let mut names: Vec<&str> = ALL.iter().map(|attribute| attribute.name).collect();
        assert!(names.iter().all(|name| name.starts_with("requestrocket.")));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
