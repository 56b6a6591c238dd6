//! Keys and tokens that we issue, told by their look: a node knows digests of them alone. Pure.

/// What they begin with, but for what stands before and behind it.
const BEGIN: &[u8] = b"rr";
/// What they are for.
const KINDS: [&[u8]; 3] = [b"live", b"api", b"join"];
/// `_` as it is, and as it is written in a URL by who escapes all that may be.
const UNDERSCORES: [&[u8]; 3] = [b"_", b"%5F", b"%5f"];
/// Bytes of the shortest beginning, `rr_api_`.
pub const BEGIN_BYTES_MIN: usize = 7;
/// Fewest characters behind the beginning. Half a key opens nothing, and is told to nobody all the
/// same.
const WORD_BYTES_MIN: usize = 8;

/// Every beginning.
pub fn beginnings() -> impl Iterator<Item = Vec<u8>> {
    UNDERSCORES.into_iter().flat_map(|one| {
        let with = move |kind| UNDERSCORES.map(|other| [BEGIN, one, kind, other].concat());
        KINDS.into_iter().flat_map(with)
    })
}

/// The length of the key that a text begins with.
pub fn length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    for parts in [&[BEGIN][..], &UNDERSCORES, &KINDS, &UNDERSCORES] {
        let rest = text.get(at..)?;
        at += parts.iter().find(|part| rest.starts_with(part))?.len();
    }
    let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'%');
    let word = text.get(at..)?.iter().take_while(is_word).count();
    (word >= WORD_BYTES_MIN).then_some(at + word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beginning_is_one() {
        assert_eq!(beginnings().count(), 27);
        let shortest = beginnings().map(|begin| begin.len()).min();
        assert_eq!(shortest, Some(BEGIN_BYTES_MIN));
        for mut key in beginnings() {
            key.extend(b"abcdEFG8");
            assert_eq!(length(&key), Some(key.len()));
            assert_eq!(length(&key[..key.len() - 1]), None);
            assert_eq!(length(&[b"x", &key[..]].concat()), None);
            assert_eq!(length(&[&key[..], b"/x"].concat()), Some(key.len()));
        }
        let issued = proto::seal::issue_key();
        assert_eq!(length(issued.as_bytes()), Some(issued.len()));
        let issued = proto::seal::issue_api_token();
        assert_eq!(length(issued.as_bytes()), Some(issued.len()));
        let issued = proto::seal::issue_invitation("ap-2");
        assert_eq!(length(issued.as_bytes()), Some(issued.len()));
    }
}
