//! The lines of leaves, parsed beside the reads that bring further ones: a node that starts with a
//! large organisation waits for nothing else.

use std::sync::Arc;

use super::load::LoadError;
use crate::object::{Object, ObjectId};
use crate::tree::{self, Hash};

/// From so many leaves on they are parsed on threads of their own: before, that takes longer than
/// the lines do.
const MANY: usize = 8;

/// An object, or its id as far as it can be told and what is wrong with it.
pub(super) type Line = Result<Arc<Object>, (Option<ObjectId>, String)>;

/// A leaf that was asked for: its place, its name, and what there is of it.
pub(super) type Asked<T> = (String, Hash, Result<T, LoadError>);

/// What a leaf holds.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Size of its content.
    pub bytes: usize,
    /// Its lines.
    pub lines: Vec<Line>,
}

impl Leaf {
    fn parse(content: &[u8]) -> Self {
        let lines = content.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty());
        let lines = lines.map(|line| tree::parse_line(line).map(Arc::new));
        Self {
            bytes: content.len(),
            lines: lines.collect(),
        }
    }
}

/// Parses leaves that were read, of so many that are read together.
pub(super) async fn parsed(read: Vec<Asked<Vec<u8>>>, together: usize) -> Vec<Asked<Leaf>> {
    let parse = |(place, hash, content): Asked<Vec<u8>>| {
        (place, hash, content.map(|content| Leaf::parse(&content)))
    };
    let parse = move || read.into_iter().map(parse).collect();
    if together < MANY {
        return parse();
    }
    match tokio::task::spawn_blocking(parse).await {
        Ok(parsed) => parsed,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_those_of_their_leaf_wherever_they_are_parsed() {
        let leaves = || -> Vec<Asked<Vec<u8>>> {
            let leaf = |leaf: usize| {
                let lines: String = (0..leaf % 5).map(|n| format!("{leaf}-{n}\n")).collect();
                let content = lines.into_bytes();
                (leaf.to_string(), Hash::of(&content), Ok(content))
            };
            (0..23).map(leaf).collect()
        };
        let here = parsed(leaves(), 1).await;
        let there = parsed(leaves(), 23).await;
        for ((place, hash, one), (at, name, other)) in here.into_iter().zip(there) {
            assert_eq!((&place, hash), (&at, name));
            let (one, other) = (one.unwrap(), other.unwrap());
            assert_eq!((one.bytes, &one.lines), (other.bytes, &other.lines));
            assert_eq!(one.lines.len(), place.parse::<usize>().unwrap() % 5);
        }
    }
}
