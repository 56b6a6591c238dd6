//! What a start tells: addresses, the admin token, a line to paste.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use proto::org::DEFAULT;

use crate::bootstrap::AdminToken;
use crate::cli::Output;
use crate::demo::Demo;
use crate::serve::Mode;
use crate::{private_file, say};

/// What is told when everything runs.
pub struct Ready {
    /// Base URL for callers.
    pub gateway: String,
    /// Base URL of the REST API.
    pub control: String,
    /// The admin token.
    pub token: AdminToken,
    /// Where a made one is kept.
    pub token_file: PathBuf,
    /// The demo, in `dev`.
    pub demo: Option<Demo>,
}

impl Ready {
    /// Says it, and keeps a fresh token where nobody saw it.
    ///
    /// # Errors
    /// The token's file cannot be written.
    pub fn tell(&self, output: Output, mode: Mode) -> anyhow::Result<()> {
        let terminal = std::io::stdout().is_terminal();
        // A shown token is not written down; a program's or a service's log never holds it.
        let keep = self.token.fresh && (mode == Mode::Dev || !terminal);
        if let Some(token) = self.token.text.as_ref().filter(|_| keep) {
            private_file::write(&self.token_file, token.as_bytes())
                .with_context(|| format!("writing {}", self.token_file.display()))?;
        }
        match output {
            Output::Json => say(&self.json().to_string()),
            Output::Text => say(&self.text(mode, terminal)),
        }
        Ok(())
    }

    fn demo_url(&self) -> String {
        format!("{}/api/demo", self.gateway)
    }

    fn json(&self) -> serde_json::Value {
        let token = self.token.text.as_ref().map(|token| token.as_str());
        let mut line = serde_json::json!({
            "gateway": self.gateway,
            "control": self.control,
            "org": DEFAULT,
            "admin_token": token,
        });
        if let Some(demo) = &self.demo {
            line["demo"] = serde_json::json!({ "url": self.demo_url(), "api_key": demo.api_key });
        }
        line
    }

    fn text(&self, mode: Mode, terminal: bool) -> String {
        let mut lines = vec![
            format!("gateway      {}", self.gateway),
            format!("control      {}", self.control),
        ];
        let shown = mode == Mode::Dev || (self.token.fresh && terminal);
        match &self.token.text {
            Some(token) if shown => lines.push(format!("admin token  {}", token.as_str())),
            Some(_) if self.token.fresh => {
                lines.push(format!("admin token  in {}", self.token_file.display()));
            }
            _ => {}
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
