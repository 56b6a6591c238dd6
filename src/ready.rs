//! What a start tells: addresses, the admin token, a line to paste.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use proto::org::DEFAULT;

use crate::bootstrap::{AdminToken, Origin};
use crate::cli::Output;
use crate::demo::Demo;
use crate::say;

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
    /// Says it.
    pub fn tell(&self, output: Output, dev: bool) {
        let terminal = std::io::stdout().is_terminal();
        match output {
            Output::Json => say(&self.json(dev).to_string()),
            Output::Text => say(&self.text(dev, terminal)),
        }
    }

    fn demo_url(&self) -> String {
        format!("{}/api/demo", self.gateway.as_deref().unwrap_or_default())
    }

    fn json(&self, dev: bool) -> serde_json::Value {
        // Outside development the line ends in a service's log: once is enough.
        let token = self.token.as_ref();
        let token = token.filter(|(token, _)| dev || token.origin == Origin::Made);
        let token = token.and_then(|(token, _)| token.text.as_ref());
        let mut line = serde_json::json!({
            "gateway": self.gateway,
            "control": self.control,
            "org": DEFAULT,
            "admin_token": token.map(|text| text.as_str()),
        });
        if let Some((token, file)) = &self.token
            && !dev
            && token.is_in_file()
        {
            line["admin_token_file"] = file.display().to_string().into();
        }
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

/// The lines on the admin token: where it is, and itself where it is new or in development, on a
/// terminal alone.
fn admin_token(token: &AdminToken, file: &Path, dev: bool, terminal: bool) -> Vec<String> {
    let is_shown = terminal && (dev || token.origin == Origin::Made);
    let shown = token.text.as_ref().filter(|_| is_shown);
    let file = token.is_in_file().then(|| file.display());
    let told = match (shown, &file) {
        (Some(text), _) => text.as_str().to_owned(),
        (None, Some(file)) => format!("in {file}"),
        (None, None) if token.origin == Origin::Given => "as it was given".to_owned(),
        (None, None) => "the one of an earlier start; give another one as \
            REQUESTROCKET_ADMIN_TOKEN if it is lost"
            .to_owned(),
    };
    let kept = file.filter(|_| shown.is_some());
    let kept = kept.map(|file| format!("token file   {file}"));
    [format!("admin token  {told}")]
        .into_iter()
        .chain(kept)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(origin: Origin) -> Ready {
        let text = zeroize::Zeroizing::new("rr_api_secret".to_owned());
        let token = AdminToken {
            text: (origin != Origin::Unknown).then_some(text),
            origin,
        };
        Ready {
            gateway: Some("http://127.0.0.1:1".into()),
            token: Some((token, "/data/admin-token".into())),
            ..Ready::default()
        }
    }

    #[test]
    fn the_admin_token_is_shown_on_a_terminal_only_and_only_when_it_is_new_or_for_development() {
        let told = |origin: Origin, dev: bool, terminal: bool| {
            let text = ready(origin).text(dev, terminal);
            let lines = text.lines();
            let lines =
                lines.filter(|line| line.starts_with("admin ") || line.starts_with("token "));
            lines.collect::<Vec<_>>().join("; ")
        };
        let shown = "admin token  rr_api_secret; token file   /data/admin-token";
        let kept = "admin token  in /data/admin-token";
        assert_eq!(told(Origin::Made, false, true), shown);
        assert_eq!(told(Origin::Made, false, false), kept, "a container's log");
        for terminal in [true, false] {
            assert_eq!(told(Origin::Kept, false, terminal), kept);
        }
        assert_eq!(told(Origin::Kept, true, true), shown);
        assert_eq!(told(Origin::Kept, true, false), kept);
        // No file is named that does not hold it.
        let given = "admin token  as it was given";
        assert_eq!(told(Origin::Given, true, false), given);
        assert_eq!(told(Origin::Given, false, true), given);
        for dev in [true, false] {
            let unknown = told(Origin::Unknown, dev, false);
            assert!(unknown.contains("REQUESTROCKET_ADMIN_TOKEN"), "{unknown}");
            assert!(!unknown.contains("/data/admin-token"), "{unknown}");
        }
    }

    #[test]
    fn a_service_tells_a_program_its_admin_token_once_and_where_it_is_from_then_on() {
        let told = |origin: Origin, dev: bool| {
            let line = ready(origin).json(dev);
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            (text("admin_token"), text("admin_token_file"))
        };
        let (token, file) = (
            Some("rr_api_secret".to_owned()),
            Some("/data/admin-token".to_owned()),
        );
        assert_eq!(told(Origin::Made, false), (token.clone(), file.clone()));
        assert_eq!(told(Origin::Kept, false), (None, file));
        assert_eq!(told(Origin::Given, false), (None, None));
        assert_eq!(told(Origin::Unknown, false), (None, None));
        for origin in [Origin::Made, Origin::Kept, Origin::Given] {
            assert_eq!(told(origin, true), (token.clone(), None));
        }
    }
}
