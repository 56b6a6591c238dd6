//! The lines of leaves, parsed by as many threads as there are cores where there is much of them: a
//! node that starts with a large organisation waits for nothing else.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use crate::object::{Object, ObjectId};
use crate::tree;

/// So much content keeps a thread busy for longer than it takes to start one.
const PART_BYTES: usize = 1 << 20;

/// An object, or its id as far as it can be told and what is wrong with it.
pub(super) type Line = Result<Arc<Object>, (Option<ObjectId>, String)>;

/// The lines of these leaves, those of each in its place.
pub(super) fn parsed(leaves: &[&[u8]]) -> Vec<Vec<Line>> {
    let bytes: usize = leaves.iter().map(|content| content.len()).sum();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    in_parts(leaves, cores.min(bytes / PART_BYTES))
}

/// The same by so many threads.
fn in_parts(leaves: &[&[u8]], threads: usize) -> Vec<Vec<Line>> {
    let threads = threads.min(leaves.len());
    if threads <= 1 {
        return leaves.iter().map(|content| lines(content)).collect();
    }
    let parts = leaves.chunks(leaves.len().div_ceil(threads));
    thread::scope(|scope| {
        let parse = |part| scope.spawn(move || in_parts(part, 1));
        let parsing: Vec<_> = parts.map(parse).collect();
        let parsed = parsing.into_iter().map(|part| match part.join() {
            Ok(lines) => lines,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        parsed.flatten().collect()
    })
}

fn lines(content: &[u8]) -> Vec<Line> {
    let lines = content.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    lines
        .map(|line| tree::parse_line(line).map(Arc::new))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_where_their_leaves_do_however_many_threads_parse_them() {
        let leaves: Vec<String> = (0..23)
            .map(|leaf| (0..leaf % 5).map(|n| format!("{leaf}-{n}\n")).collect())
            .collect();
        let leaves: Vec<&[u8]> = leaves.iter().map(String::as_bytes).collect();
        let one = in_parts(&leaves, 1);
        assert_eq!(one.len(), 23);
        assert_eq!((one[4].len(), one[5].len()), (4, 0));
        for threads in [0, 2, 3, 22, 23, 24, 99] {
            assert_eq!(in_parts(&leaves, threads), one, "{threads}");
        }
        assert_eq!(in_parts(&[], 4), Vec::<Vec<Line>>::new());
    }
}
