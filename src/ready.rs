//! What a start tells: addresses, the admin token, a line to paste.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use proto::org::DEFAULT;

use crate::bootstrap::AdminToken;
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
    /// The demo, in `dev`.
    pub demo: Option<Demo>,
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
            let keep = token.fresh && (dev || !terminal);
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
        if let Some(demo) = &self.demo {
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
            let told = dev || token.fresh;
            match &token.text {
                Some(text) if told && terminal => {
                    lines.push(format!("admin token  {}", text.as_str()))
                }
                Some(_) if told => {
                    lines.push(format!("admin token  in {}", file.display()));
                }
                _ => {}
            }
        }
        if let Some(demo) = &self.demo {
            lines.push(String::new());
            lines.push(format!(
                "curl -H \"Authorization: Bearer {}\" {}/hello",
                demo.api_key,
                self.demo_url()
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_token_is_shown_on_a_terminal_only_and_only_when_it_is_new_or_for_development() {
        let told = |fresh: bool, dev: bool, terminal: bool| {
            let token = AdminToken {
                text: Some(zeroize::Zeroizing::new("rr_api_secret".to_owned())),
                fresh,
            };
            let ready = Ready {
                gateway: Some("http://127.0.0.1:1".into()),
                control: None,
                link: None,
                token: Some((token, "/data/admin-token".into())),
                demo: None,
            };
            let text = ready.text(dev, terminal);
            (
                text.contains("rr_api_secret"),
                text.contains("/data/admin-token"),
            )
        };
        assert_eq!(told(true, false, true), (true, false));
        assert_eq!(told(true, false, false), (false, true), "a container's log");
        assert_eq!(told(false, false, true), (false, false));
        assert_eq!(told(false, true, true), (true, false));
        assert_eq!(told(false, true, false), (false, true));
    }
}
