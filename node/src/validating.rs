//! Bodies held against the schemas of their proxy: what is enforced ends the request, what is
//! only reported is counted and told in the answer's warning.

use proto::outcome::{Code, EarlyEnd, Extra};
use proto::validation::{BodyValidator, ValidationMode};

use crate::flow::Notes;

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller's.
    Request,
    /// The target's.
    Response,
}

impl Side {
    /// Both, in the order of [`Violations`].
    pub const ALL: [Self; 2] = [Self::Request, Self::Response];

    /// The name, as in the proxy's `validation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// The names of the modes, in the order of [`Violations`].
pub const MODES: [(ValidationMode, &str); 2] = [
    (ValidationMode::Enforce, "enforce"),
    (ValidationMode::Report, "report"),
];

/// Bodies and documents of streams that broke a schema, by side and mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Violations(pub [[u32; 2]; 2]);

impl Violations {
    /// So many more.
    pub fn add(&mut self, side: Side, mode: ValidationMode, count: u32) {
        let of_mode = &mut self.0[side as usize][usize::from(mode == ValidationMode::Report)];
        *of_mode = of_mode.saturating_add(count);
    }
}

/// Holds a body against a schema.
///
/// # Errors
/// It breaks the schema, which is enforced. What is told names places in the body, no values.
pub fn hold(
    validator: &BodyValidator,
    side: Side,
    body: &[u8],
    notes: &mut Notes,
) -> Result<(), EarlyEnd> {
    let Err(invalid) = validator.check(body) else {
        return Ok(());
    };
    notes.violations.add(side, validator.mode, 1);
    let name = side.as_str();
    if validator.mode == ValidationMode::Report {
        notes.warn(format!(
            "the body of the {name} breaks the proxy's schema {}",
            invalid.summary()
        ));
        return Ok(());
    }
    let what_to_do = match side {
        Side::Request => "mend what `errors` lists and send it again",
        Side::Response => "it is withheld; the target's answer or the schema has changed",
    };
    let more = match invalid.more {
        true => " (`errors` lists the first of them)",
        false => "",
    };
    let detail = format!(
        "the body of the {name} breaks the schema of this proxy \
         (`validation.{name}`){more}: {what_to_do}"
    );
    Err(EarlyEnd::new(Code::ValidationFailed, detail).with(Extra::Errors(invalid.problems)))
}

/// A body that should be there and is not, or cannot be had as one document.
///
/// # Errors
/// The schema is enforced.
pub fn without(
    validator: &BodyValidator,
    side: Side,
    why: &str,
    notes: &mut Notes,
) -> Result<(), EarlyEnd> {
    notes.violations.add(side, validator.mode, 1);
    let name = side.as_str();
    let detail =
        format!("the proxy has a schema for the body of the {name} (`validation.{name}`), {why}");
    match validator.mode {
        ValidationMode::Report => {
            notes.warn(detail);
            Ok(())
        }
        ValidationMode::Enforce => Err(EarlyEnd::new(Code::ValidationFailed, detail)),
    }
}
