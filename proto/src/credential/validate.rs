//! Everything that is wrong with a credential, its secret aside.

use super::{
    AuthType, Credential, CredentialKind, MAX_FACT_AGE_S, PATH_SECRET, PRIORITY_MAX, UseBy,
    WILDCARD_TOO_WIDE,
};
use crate::checks;
use crate::problem::Problem;
use crate::regions;

impl Credential {
    /// Every problem of the object itself.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        checks::name(&self.name, "/name", &mut problems);
        checks::labels(&self.labels, &mut problems);
        match self.kind {
            CredentialKind::Proxy => self.validate_proxy(&mut problems),
            CredentialKind::Target => self.validate_target(&mut problems),
        }
        self.validate_placement(&mut problems);
        if let Some(age) = self.max_fact_age_s.filter(|s| !MAX_FACT_AGE_S.contains(s)) {
            let (least, most) = (MAX_FACT_AGE_S.start(), MAX_FACT_AGE_S.end());
            let detail = format!("{age} is not within {least} to {most} seconds");
            problems.push(Problem::new("/max_fact_age_s", "range", detail));
        }
        problems
    }

    fn validate_proxy(&self, problems: &mut Vec<Problem>) {
        if self.priority > PRIORITY_MAX {
            let detail = format!("{} is not within 0 to {PRIORITY_MAX}", self.priority);
            problems.push(Problem::new("/priority", "range", detail));
        }
        if self.auth_type == AuthType::Custom {
            let detail = "`custom` is for target credentials; use api_key, bearer, basic, jwt \
                          or none";
            problems.push(Problem::new("/auth_type", "auth-type", detail));
        }
        if !self.hosts.is_empty() {
            let detail = "only target credentials are bound to hosts";
            problems.push(Problem::new("/hosts", "not-applicable", detail));
        }
        if self.use_by != UseBy::Admin {
            let detail = "only target credentials have `use_by`";
            problems.push(Problem::new("/use_by", "not-applicable", detail));
        }
        if !regions::is_everywhere(&self.regions) {
            let detail = "only target credentials are kept in some regions; callers are told from \
                          strangers in all";
            problems.push(Problem::new("/regions", "not-applicable", detail));
        }
    }

    fn validate_target(&self, problems: &mut Vec<Problem>) {
        if self.hosts.is_empty() && self.has_secret() {
            let detail = "a target credential names the hosts that its secret may be sent to, \
                          for instance [\"api.example.com\"]";
            problems.push(Problem::new("/hosts", "required", detail));
        }
        regions::check(&self.regions, problems);
        if self.hosts.len() > 64 {
            problems.push(Problem::new("/hosts", "too-many", "at most 64 hosts"));
        }
        for (at, host) in self.hosts.iter().enumerate() {
            if host.is_too_wide() {
                let detail = format!(
                    "`{host}` is directly below a public suffix, so anybody may own a name in it; \
                     write the exact host names instead"
                );
                let pointer = format!("/hosts/{at}");
                problems.push(Problem::new(pointer, WILDCARD_TOO_WIDE, detail));
            }
        }
        if self.priority > 0 {
            let detail = "only callers are held at a limit: set it on a proxy credential";
            problems.push(Problem::new("/priority", "not-applicable", detail));
        }
        if self.explain {
            let detail = "only callers are told what was decided: set it on a proxy credential";
            problems.push(Problem::new("/explain", "not-applicable", detail));
        }
        if self.expires_at.is_some() {
            let detail = "only proxy credentials expire; rotate or delete this one";
            problems.push(Problem::new("/expires_at", "not-applicable", detail));
        }
    }

    /// Which of `header`, `query`, `path`, `prefix` may be given, and whether they are well formed.
    fn validate_placement(&self, problems: &mut Vec<Problem>) {
        let settings = &self.settings;
        let is_key = self.auth_type == AuthType::ApiKey;
        let target = self.kind == CredentialKind::Target;
        for (field, given, applies) in [
            ("header", settings.header.is_some(), is_key),
            ("query", settings.query.is_some(), is_key),
            ("path", settings.path.is_some(), is_key && target),
            ("prefix", settings.prefix.is_some(), is_key && target),
        ] {
            if given && !applies {
                let detail = format!(
                    "does not apply to a {} credential of type {}",
                    if target { "target" } else { "proxy" },
                    self.auth_type.as_str()
                );
                problems.push(Problem::new(
                    format!("/settings/{field}"),
                    "not-applicable",
                    detail,
                ));
            }
        }
        if let Some(header) = &settings.header {
            checks::settable_header(header, "/settings/header", problems);
        }
        if settings
            .query
            .as_ref()
            .is_some_and(|q| q.is_empty() || q.len() > 256)
        {
            problems.push(Problem::new("/settings/query", "length", "1 to 256 bytes"));
        }
        if settings
            .prefix
            .as_ref()
            .is_some_and(|prefix| prefix.len() > 256 || !checks::is_field_value(prefix.as_bytes()))
        {
            let detail = "at most 256 bytes without control characters";
            problems.push(Problem::new("/settings/prefix", "header-value", detail));
        }
        if let Some(path) = &settings.path {
            let clean = path
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"?#%\\;\"<>".contains(&b));
            let whole = path.matches(PATH_SECRET).count() == 1;
            if !path.starts_with('/') || !clean || !whole || path.contains("..") {
                let detail = "must begin with `/` and hold `{secret}` once, like `/bot{secret}`";
                problems.push(Problem::new("/settings/path", "path-template", detail));
            }
        }
        let places = [&settings.header, &settings.query, &settings.path];
        if target && places.into_iter().flatten().count() > 1 {
            let detail = "give one of header, query and path";
            problems.push(Problem::new("/settings", "contradiction", detail));
        }
    }
}
