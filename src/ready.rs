//! What a start tells: addresses, the admin token, a line to paste.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use proto::org::DEFAULT;

use crate::bootstrap::{AdminToken, Origin};
use crate::cli::Output;
use crate::demo::Demo;
use crate::{private_file, say};

/// What is told when everything runs.
#[derive(Default)]
pub struct Ready {
    /// Base URL for callers.
    pub gateway: Option<String>,
    /// Base URL of the REST API.
    pub control: Option<String>,
    /// Address at which nodes leave their records.
    pub link: Option<String>,
    /// The admin token, and where a made one is kept.
    pub token: Option<(AdminToken, PathBuf)>,
    /// The demo, in `dev`; or why its key leads nowhere.
    pub demo: Option<Result<Demo, String>>,
}

impl Ready {
    /// Says it, and keeps a fresh token where nobody saw it.
    ///
    /// # Errors
    /// The token's file cannot be written.
    pub fn tell(&self, output: Output, dev: bool) -> anyhow::Result<()> {
        let terminal = std::io::stdout().is_terminal();
        if let Some((token, file)) = &self.token {
            // A shown token is not written down; a program's or a service's log never holds it.
            let keep = token.origin == Origin::Made && (dev || !terminal);
            if let Some(text) = token.text.as_ref().filter(|_| keep) {
                private_file::write(file, text.as_bytes())
                    .with_context(|| format!("writing {}", file.display()))?;
            }
        }
        match output {
            Output::Json => say(&self.json().to_string()),
            Output::Text => say(&self.text(dev, terminal)),
        }
        Ok(())
    }

    fn demo_url(&self) -> String {
        format!("{}/api/demo", self.gateway.as_deref().unwrap_or_default())
    }

    fn json(&self) -> serde_json::Value {
        let token = self
            .token
            .as_ref()
            .and_then(|(token, _)| token.text.as_ref());
        let mut line = serde_json::json!({
            "gateway": self.gateway,
            "control": self.control,
            "org": DEFAULT,
            "admin_token": token.map(|text| text.as_str()),
        });
        if let Some(link) = &self.link {
            line["link"] = link.as_str().into();
        }
        if let Some(Ok(demo)) = &self.demo {
            line["demo"] = serde_json::json!({ "url": self.demo_url(), "api_key": demo.api_key });
        }
        line
    }

    fn text(&self, dev: bool, terminal: bool) -> String {
        let addresses = [
            ("gateway", &self.gateway),
            ("control", &self.control),
            ("link", &self.link),
        ];
        let mut lines: Vec<String> = addresses
            .into_iter()
            .filter_map(|(name, address)| Some(format!("{name:12} {}", address.as_ref()?)))
            .collect();
        if let Some((token, file)) = &self.token {
            lines.extend(admin_token(token, file, dev, terminal));
        }
        match &self.demo {
            Some(Ok(demo)) => {
                lines.push(String::new());
                lines.push(format!(
                    "curl -H \"Authorization: Bearer {}\" {}/hello",
                    demo.api_key,
                    self.demo_url()
                ));
            }
            Some(Err(why)) => lines.push(format!("demo         not offered: {why}")),
            None => {}
        }
        lines.join("\n")
    }
}

/// The line on the admin token: where it is made or in development, never into a program's log.
fn admin_token(token: &AdminToken, file: &Path, dev: bool, terminal: bool) -> Option<String> {
    if !dev && token.origin != Origin::Made {
        return None;
    }
    let told = match (&token.text, token.origin) {
        (Some(text), _) if terminal => text.as_str().to_owned(),
        (Some(_), Origin::Given) => "as it was given".to_owned(),
        (Some(_), _) => format!("in {}", file.display()),
        (None, _) => "the one of an earlier start; give another one as REQUESTROCKET_ADMIN_TOKEN \
            if it is lost"
            .to_owned(),
    };
    Some(format!("admin token  {told}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_token_is_shown_on_a_terminal_only_and_only_when_it_is_new_or_for_development() {
        let told = |origin: Origin, dev: bool, terminal: bool| {
            let text = zeroize::Zeroizing::new("rr_api_secret".to_owned());
            let token = AdminToken {
                text: (origin != Origin::Unknown).then_some(text),
                origin,
            };
            let ready = Ready {
                gateway: Some("http://127.0.0.1:1".into()),
                token: Some((token, "/data/admin-token".into())),
                ..Ready::default()
            };
            let text = ready.text(dev, terminal);
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("admin token  "));
            line.map(str::to_owned)
        };
        let (shown, kept) = (
            Some("rr_api_secret".to_owned()),
            Some("in /data/admin-token".to_owned()),
        );
        assert_eq!(told(Origin::Made, false, true), shown);
        assert_eq!(told(Origin::Made, false, false), kept, "a container's log");
        assert_eq!(told(Origin::Kept, false, true), None);
        assert_eq!(told(Origin::Kept, true, true), shown);
        assert_eq!(told(Origin::Kept, true, false), kept);
        // No file is named that does not hold it.
        assert_eq!(
            told(Origin::Given, true, false),
            Some("as it was given".to_owned())
        );
        assert_eq!(told(Origin::Given, false, false), None);
        let unknown = told(Origin::Unknown, true, false).unwrap_or_default();
        assert!(unknown.contains("REQUESTROCKET_ADMIN_TOKEN"), "{unknown}");
    }
}
