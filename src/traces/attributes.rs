//! Every attribute of our own that spans carry, and every event of theirs. The tables in the tests
//! say what each means, and `docs/traces.md` is made from them (`UPDATE_DOCS=1`).

use proto::record::SpanEventKind;

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
/// The meter of an event.
pub const METER: &str = "requestrocket.meter.id";
/// The endpoint of an event.
pub const ENDPOINT: &str = "requestrocket.endpoint";
/// The filter of an event.
pub const FILTER: &str = "requestrocket.filter.id";
/// How often a secret was overwritten.
pub const OVERWRITTEN: &str = "requestrocket.secret.overwritten";
/// How often it was sent before, as the conventions name it.
const RESEND_COUNT: &str = "http.request.resend_count";

/// The name of an event.
pub const fn event(kind: SpanEventKind) -> &'static str {
    match kind {
        SpanEventKind::Retry => "requestrocket.retry",
        SpanEventKind::HoldBegan => "requestrocket.hold.began",
        SpanEventKind::HoldEnded => "requestrocket.hold.ended",
        SpanEventKind::BreakerOpened => "requestrocket.breaker.opened",
        SpanEventKind::CredentialHostMismatch => "requestrocket.credential.host_mismatch",
        SpanEventKind::SecretReflected => "requestrocket.secret.reflected",
        SpanEventKind::FilterChanged => "requestrocket.filter.changed",
        SpanEventKind::MeterLocalShare => "requestrocket.meter.local_share",
        SpanEventKind::MeterFailOpen => "requestrocket.meter.fail_open",
    }
}

/// The attribute of an event that says what it happened to.
pub const fn subject(kind: SpanEventKind) -> &'static str {
    match kind {
        SpanEventKind::Retry | SpanEventKind::BreakerOpened => ENDPOINT,
        SpanEventKind::HoldBegan
        | SpanEventKind::HoldEnded
        | SpanEventKind::MeterLocalShare
        | SpanEventKind::MeterFailOpen => METER,
        SpanEventKind::CredentialHostMismatch | SpanEventKind::SecretReflected => TARGET_CREDENTIAL,
        SpanEventKind::FilterChanged => FILTER,
    }
}

/// The attribute of an event that counts; of most there is none.
pub const fn count(kind: SpanEventKind) -> &'static str {
    match kind {
        SpanEventKind::Retry => RESEND_COUNT,
        _ => OVERWRITTEN,
    }
}

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
        attribute(METER, "string", "events of meters", "The meter"),
        attribute(
            ENDPOINT,
            "string",
            "`…retry`, `…breaker.opened`",
            "The endpoint of the target, where it has several, or the address of the breaker",
        ),
        attribute(FILTER, "string", "`…filter.changed`", "The filter"),
        attribute(
            OVERWRITTEN,
            "int",
            "`…secret.reflected`",
            "How often the secret was overwritten",
        ),
    ];

    /// What an event means, and the stages whose spans have it.
    const fn meaning(kind: SpanEventKind) -> (&'static str, &'static str) {
        match kind {
            SpanEventKind::Retry => (
                "`forward`",
                "It was sent once more; `http.request.resend_count` is the number of the retry",
            ),
            SpanEventKind::HoldBegan => (
                "`limit`, `forward`",
                "It waits for its turn at a meter that holds its callers, or for a place among \
                 the calls in flight",
            ),
            SpanEventKind::HoldEnded => (
                "`limit`, `forward`",
                "It had its turn there, was refused, or its caller left",
            ),
            SpanEventKind::BreakerOpened => (
                "`forward`",
                "What came of it made the circuit breaker of the target's address open",
            ),
            SpanEventKind::CredentialHostMismatch => (
                "`inject`, `forward`",
                "The target is no host that its credential may be sent to; nothing was sent",
            ),
            SpanEventKind::SecretReflected => (
                "`forward`, `filter`, `respond`",
                "The answer held the secret that it was sent with, which was overwritten",
            ),
            SpanEventKind::FilterChanged => (
                "`prepare`, `filter`, `respond`",
                "A filter changed its body, or that of its answer",
            ),
            SpanEventKind::MeterLocalShare => (
                "`forward`",
                "A meter let it pass by this node's own share: neither the node that keeps the \
                 meter nor the store could be reached",
            ),
            SpanEventKind::MeterFailOpen => (
                "`forward`",
                "A meter let it pass without counting, for the same reason",
            ),
        }
    }

    /// The documentation, and one table in it: what stands before it, the table, and what follows.
    fn documented(which: &str) -> (String, String, String) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/traces.md");
        let text = std::fs::read_to_string(path).unwrap();
        let begin = format!("<!-- {which}: made from src/traces/attributes.rs -->\n");
        let end = format!("<!-- end of {which} -->");
        let (before, rest) = text.split_once(&begin).unwrap();
        let (found, after) = rest.split_once(&end).unwrap();
        let before = format!("{before}{begin}");
        (before, found.to_owned(), format!("{end}{after}"))
    }

    fn check_documented(which: &str, table: &str) {
        let (before, found, after) = documented(which);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/traces.md");
            std::fs::write(path, [&before, table, &after].concat()).unwrap();
            return;
        }
        assert_eq!(found, table, "run with UPDATE_DOCS=1");
    }

    #[test]
    fn the_documentation_is_made_from_this_file() {
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
        check_documented("attributes", &table);
        let mut table = "| event | spans | attribute | meaning |\n|---|---|---|---|\n".to_owned();
        for kind in SpanEventKind::ALL {
            let (on, meaning) = meaning(kind);
            let (name, of) = (event(kind), subject(kind));
            table.push_str(&format!("| `{name}` | {on} | `{of}` | {meaning}. |\n"));
        }
        check_documented("events", &table);
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
        let others = [
            include_str!("spans.rs"),
            include_str!("encode.rs"),
            include_str!("events.rs"),
        ];
        for text in others {
            let text = program(text);
            assert!(!text.contains("\"requestrocket."), "a name of its own");
        }
    }

    #[test]
    fn names_are_unique_and_ours() {
        let mut names: Vec<&str> = ALL.iter().map(|attribute| attribute.name).collect();
        names.extend(SpanEventKind::ALL.map(event));
        assert!(names.iter().all(|name| name.starts_with("requestrocket.")));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
