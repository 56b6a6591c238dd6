//! The nodes of a region: who is there, what each serves, and what it cannot serve.

use jiff::{SignedDuration, Timestamp};
use proto::id::OrgId;
use proto::keys::{self, Live};
use proto::member::Member;
use proto::store::{KeyValue, StoreError, load};
use proto::tree::Head;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use super::node_lag::Line;
use super::{page, write};
use crate::linked::LinkedNode;
use crate::route::{Gives, Parameter, Route, Verb};

const ORG: &[Parameter] = &[(
    "org",
    "Slug or id of an organisation: each node says in `applied` which version of it it serves, and \
     how far that is behind",
)];

/// Most organisations that a node is shown to be behind in.
const BEHIND_MAX: usize = 100;

/// How long a node may be connected and not in etcd yet: it starts.
const STARTS_MAX: SignedDuration = SignedDuration::from_secs(10);
/// Longest silence of a node that runs: it speaks every 20 s.
const SILENCE_MAX: SignedDuration = SignedDuration::from_secs(45);

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/nodes",
            ("list_nodes", "List the nodes of this region"),
            list,
        )
        .gives(Gives::List("Node"))
        .parameters(ORG),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let org = match call.request.query.get("org") {
        None => None,
        Some(name) => Some(call.control.find_org(name).ok_or_else(|| {
            let detail = "names no organisation: give the slug or the id of one";
            Refusal::parameter("org", detail)
        })?),
    };
    // Before etcd is asked: who comes meanwhile is not missed there.
    let linked = call.control.linked.nodes();
    let own = call.control.publisher.region();
    let known = known(&call, org.as_ref().map(|org| org.id)).await;
    let now = Timestamp::now();
    let connected = connected(linked, own, now);
    let items: Vec<Value> = match known {
        Ok(known) => {
            let is_away = |node: &&LinkedNode| {
                now.duration_since(node.since) >= STARTS_MAX
                    && !known.members.iter().any(|member| member.name == node.name)
            };
            let away = connected.iter().filter(is_away).map(cut_off);
            let slug = |org: OrgId| call.control.slug_of(org);
            known.shown(own, now, slug).chain(away).collect()
        }
        Err(StoreError::Unavailable(_)) if !connected.is_empty() => {
            connected.iter().map(unasked).collect()
        }
        Err(error) => return Err(write::refusal(error.into())),
    };
    let items = items.into_iter().map(|item| (key(&item), item)).collect();
    Ok(Answer::json(page::cut(items, &page)))
}

/// Orders nodes by region and name; one that is known by its connection alone has no id.
fn key(node: &Value) -> String {
    let text = |field: &str| node[field].as_str().unwrap_or_default();
    [text("region"), text("name"), text("id")].join(" ")
}

/// What etcd says of the nodes.
struct Known {
    /// By region and name.
    members: Vec<Member>,
    /// Empty where all members are current.
    heads: Vec<KeyValue>,
    /// What every node serves that is current.
    newest: String,
    /// The versions of the organisation that was asked for.
    line: Option<Line>,
}

async fn known(call: &Call, org: Option<OrgId>) -> Result<Known, StoreError> {
    let newest = call.control.fingerprint();
    let store = call.control.publisher.store();
    let mut members: Vec<Member> = Vec::new();
    load::list(store, keys::NODES, None, |pair| {
        // One of another release that cannot be read is not worth failing for.
        members.extend(serde_json::from_slice::<Member>(&pair.value).ok());
    })
    .await?;
    members.sort_by(|one, other| (&one.region, &one.name).cmp(&(&other.region, &other.name)));
    let mut heads = Vec::new();
    if members.iter().any(|member| member.serves != newest) {
        load::list(store, keys::HEADS, None, |pair| heads.push(pair)).await?;
    }
    let line = match org {
        None => None,
        Some(org) => Line::read(store, org).await?,
    };
    Ok(Known {
        members,
        heads,
        newest,
        line,
    })
}

impl Known {
    /// The nodes as they are answered.
    fn shown(
        &self,
        own: &str,
        now: Timestamp,
        slug: impl Fn(OrgId) -> Option<String>,
    ) -> impl Iterator<Item = Value> {
        self.members.iter().map(move |member| {
            // A member of plain fields always serialises.
            let mut shown = serde_json::to_value(member).unwrap_or_default();
            let current = member.serves == self.newest;
            shown["current"] = json!(current);
            if !current {
                shown["behind"] = behind(member, &self.heads, &slug);
            }
            let problems = problems(member, &self.members, own);
            if !problems.is_empty() {
                shown["problems"] = Value::Array(problems);
            }
            if let Some(line) = &self.line {
                shown["applied"] = line.shown(member, now);
                shown["applied"]["slug"] = json!(slug(line.org()));
            }
            shown
        })
    }
}

/// Nodes of this region that are connected here and not silent.
fn connected(mut linked: Vec<LinkedNode>, own: &str, now: Timestamp) -> Vec<LinkedNode> {
    linked.retain(|node| node.region == own && now.duration_since(node.heard_at) <= SILENCE_MAX);
    linked
}

/// A node that is connected here and that etcd does not have.
fn cut_off(node: &LinkedNode) -> Value {
    let detail = "it is connected to this control plane and does not reach etcd: it serves what it \
                  has, and newer versions do not arrive there";
    let mut shown = by_connection(node, ("cut-off", detail));
    shown["current"] = json!(false);
    shown
}

/// A node that is connected here while etcd cannot be asked for it.
fn unasked(node: &LinkedNode) -> Value {
    let detail = "this control plane does not reach etcd: what the node serves is not known; it is \
                  connected here, and serves what it has";
    by_connection(node, ("store-unavailable", detail))
}

fn by_connection(node: &LinkedNode, (code, detail): (&str, &str)) -> Value {
    json!({
        "name": node.name,
        "region": node.region,
        "connected_since": node.since,
        "heard_at": node.heard_at,
        "problems": [{"code": code, "detail": detail}],
    })
}

/// Organisations with a version that a node has not seen.
fn behind(member: &Member, heads: &[KeyValue], slug: impl Fn(OrgId) -> Option<String>) -> Value {
    let unseen = heads
        .iter()
        .filter(|pair| pair.mod_revision.0 > member.revision);
    let shown = unseen.filter_map(|pair| {
        let head = Head::parse(&pair.value).ok()?;
        match Live::parse(&pair.key)? {
            Live::Head(org) => {
                Some(json!({"org": org.to_string(), "slug": slug(org), "newest": head.n}))
            }
            _ => None,
        }
    });
    shown.take(BEHIND_MAX).collect()
}

/// What is wrong with a node's place among the others.
fn problems(member: &Member, all: &[Member], own: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut problem = |code: &str, detail: String| {
        found.push(json!({"code": code, "detail": detail}));
    };
    if member.region != own {
        problem(
            "region-foreign",
            format!(
                "it says that it is of region {}, and is in the store of {own}: set its `region`, \
                 key ring and `store.endpoints` to those of one region",
                member.region
            ),
        );
    }
    // One that was killed and started again is listed twice until its lease ends.
    let is_namesake = |other: &&Member| {
        other.id != member.id
            && (&other.name, &other.region) == (&member.name, &member.region)
            && (&other.address, &other.peers) != (&member.address, &member.peers)
    };
    if let Some(other) = all.iter().find(is_namesake) {
        problem(
            "name-taken",
            format!(
                "the node at {} is named {} too: give each its own `node_name`, or their records \
                 and their parts of limits mix",
                other.place(),
                member.name
            ),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proto::id::NodeId;

    use super::*;

    fn member(bits: u128, name: &str, region: &str, address: &str) -> Member {
        Member {
            id: NodeId::from_bits(bits),
            name: name.into(),
            region: region.into(),
            address: address.into(),
            peers: None,
            program: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            revision: 7,
            serves: String::new(),
            in_flight: 0,
            clock_ahead_ms: None,
            meters_degraded: 0,
            restarts: Default::default(),
            not_kept: Default::default(),
            sealing: None,
            failing: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn linked_at(member: Member, peers: &str) -> Member {
        Member {
            peers: Some(peers.into()),
            ..member
        }
    }

    #[test]
    fn a_name_for_two_and_a_region_of_another_store_are_told() {
        let all = [
            member(1, "gw-1", "eu", "10.0.0.1:8080"),
            member(2, "gw-1", "eu", "10.0.0.2:8080"),
            member(3, "gw-2", "eu", "10.0.0.3:8080"),
            member(4, "gw-2", "eu", "10.0.0.3:8080"),
            member(5, "gw-3", "x", "10.0.0.4:8080"),
            linked_at(member(6, "gw-4", "eu", "0.0.0.0:8080"), "10.0.0.5:8083"),
            linked_at(member(7, "gw-4", "eu", "0.0.0.0:8080"), "10.0.0.6:8083"),
            linked_at(member(8, "gw-5", "eu", "0.0.0.0:8080"), "10.0.0.7:8083"),
            linked_at(member(9, "gw-5", "eu", "0.0.0.0:8080"), "10.0.0.7:8083"),
        ];
        let codes = all.each_ref().map(|one| {
            let found = problems(one, &all, "eu");
            let codes = found.iter().map(|problem| problem["code"].to_string());
            codes.collect::<Vec<_>>().join(" ")
        });
        let (taken, foreign) = ("\"name-taken\"", "\"region-foreign\"");
        let expected = [taken, taken, "", "", foreign, taken, taken, "", ""];
        assert_eq!(codes, expected);
        let told = problems(&all[5], &all, "eu");
        assert!(
            told[0]["detail"]
                .as_str()
                .unwrap()
                .contains("10.0.0.6:8083")
        );
    }

    #[test]
    fn a_node_is_here_while_it_is_of_this_region_and_speaks() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let linked = |name: &str, region: &str, heard| LinkedNode {
            name: name.into(),
            region: region.into(),
            since: at(0),
            heard_at: at(heard),
        };
        let all = [
            linked("gw-2", "eu", 80),
            linked("silent", "eu", 40),
            linked("elsewhere", "us", 99),
        ];
        let here = connected(all.to_vec(), "eu", at(100));
        assert_eq!(here, [linked("gw-2", "eu", 80)]);
        let shown = cut_off(&here[0]);
        assert_eq!(shown["name"], "gw-2");
        assert_eq!(shown["current"], false);
        assert_eq!(shown["heard_at"], "1970-01-01T00:01:20Z");
        assert_eq!(shown["problems"][0]["code"], "cut-off");
        let shown = unasked(&here[0]);
        assert!(shown.get("current").is_none(), "{shown}");
        assert_eq!(shown["problems"][0]["code"], "store-unavailable");
    }
}
