//! Metrics as listeners give them.

use super::http::Request;

/// The value of a series in what a listener gave: its name, with all its labels as they are written
/// where it has some.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let of = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(of)
}

/// The same on a listener of a node, by its URL, which asks for no token.
pub fn at(listener: &str, series: &str) -> Option<f64> {
    let answer = Request::new("GET", "/metrics").send(listener);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    value(&answer.text(), series)
}
