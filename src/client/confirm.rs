//! The question before something is done that ends what others use.

use std::io::{IsTerminal, Write};

use anyhow::{bail, ensure};
use clap::Args;

/// Whether to ask.
#[derive(Clone, Copy, Debug, Args)]
pub struct ConfirmArgs {
    /// Do not ask; needed where nobody can be asked, as in a script.
    #[arg(short, long)]
    pub yes: bool,
}

impl ConfirmArgs {
    /// Asks the person at the terminal. Whether somebody was asked.
    ///
    /// # Errors
    /// They do not want it, or nobody is there.
    pub fn ask(self, what: &str) -> anyhow::Result<bool> {
        if self.yes {
            return Ok(false);
        }
        let stdin = std::io::stdin();
        ensure!(
            stdin.is_terminal() && std::io::stderr().is_terminal(),
            "{what}: this takes effect at once, and nobody can be asked here: say --yes"
        );
        eprint!("{what}: this takes effect at once. Do it? [y/N] ");
        std::io::stderr().flush()?;
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        match agrees(&line) {
            true => Ok(true),
            false => bail!("nothing was changed"),
        }
    }
}

fn agrees(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_yes_is_one() {
        for (line, expected) in [
            ("y\n", true),
            ("Yes\r\n", true),
            ("\n", false),
            ("", false),
            ("no\n", false),
            ("yesterday\n", false),
        ] {
            assert_eq!(super::agrees(line), expected, "{line:?}");
        }
    }
}
