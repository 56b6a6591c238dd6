//! What a node and a control plane say to each other: frames over a mutually authenticated stream.
//!
//! The node begins with [`Hello`] and control answers [`Welcome`], each with the highest protocol
//! that it speaks; both go on with the lower one. Then the node sends batches of records and
//! control answers each, once it is stored, with its [`Ack`], since protocol 2 with a [`TimedAck`].

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    HEAD_BYTES, Message, SCHEMA_ACK, SCHEMA_HELLO, SCHEMA_TIMED_ACK, SCHEMA_WELCOME, encode,
    frame_len,
};

/// The protocol that this program speaks.
pub const PROTOCOL: u16 = 2;
/// The protocol since which control tells what its wall clock shows.
pub const CLOCK_PROTOCOL: u16 = 2;
/// Largest frame before the other side is known, in bytes.
pub const GREETING_BYTES_MAX: usize = 4_096;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest protocol that the node speaks.
    pub protocol: u16,
    /// The node's name, which its certificate must name too.
    pub node: String,
    /// Its region.
    pub region: String,
}

impl Message for Hello {
    const SCHEMA: u16 = SCHEMA_HELLO;
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The highest protocol that control speaks.
    pub protocol: u16,
    /// Why the node is sent away, if it is.
    pub refused: Option<String>,
}

impl Message for Welcome {
    const SCHEMA: u16 = SCHEMA_WELCOME;
}

/// A batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of which batch.
    pub sequence: u64,
}

impl Message for Ack {
    const SCHEMA: u16 = SCHEMA_ACK;
}

/// A batch is stored, and what time it is then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedAck {
    /// Of which batch.
    pub sequence: u64,
    /// The control plane, as it calls itself: there may be several behind one address.
    pub by: String,
    /// What its wall clock shows, in nanoseconds since 1970-01-01 in UTC.
    pub unix_ns: u64,
}

impl Message for TimedAck {
    const SCHEMA: u16 = SCHEMA_TIMED_ACK;
}

/// Reads one frame of at most `bytes_max` bytes; `None` where the stream ends between two.
///
/// # Errors
/// The stream fails, ends within a frame, or holds no frame or one that is larger.
pub async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> std::io::Result<Option<Vec<u8>>> {
    let invalid = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let mut frame = vec![0; HEAD_BYTES];
    let first = stream.read(&mut frame).await?;
    if first == 0 {
        return Ok(None);
    }
    stream
        .read_exact(frame.get_mut(first..).unwrap_or_default())
        .await?;
    let length = frame_len(&frame).map_err(|error| invalid(error.to_string()))?;
    if length > bytes_max {
        return Err(invalid(format!(
            "a frame of {length} bytes, at most {bytes_max} may come"
        )));
    }
    frame.resize(length, 0);
    stream
        .read_exact(frame.get_mut(HEAD_BYTES..).unwrap_or_default())
        .await?;
    Ok(Some(frame))
}

/// Writes the frame of a message.
///
/// # Errors
/// The stream fails, or the message does not fit into a frame.
pub async fn write_frame<M: Message>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> std::io::Result<()> {
    let frame = encode(message)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))?;
    stream.write_all(&frame).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FORMAT, MAGIC, PAYLOAD_BYTES_MAX, decode};
    use super::*;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            node: "gw-1".into(),
            region: "eu".into(),
        }
    }

    #[tokio::test]
    async fn frames_pass_one_after_another() {
        let (mut left, mut right) = tokio::io::duplex(16);
        let writing = tokio::spawn(async move {
            write_frame(&mut left, &hello()).await.unwrap();
            write_frame(&mut left, &Ack { sequence: 7 }).await.unwrap();
        });
        let first = read_frame(&mut right, GREETING_BYTES_MAX)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(decode::<Hello>(&first).unwrap(), hello());
        let second = read_frame(&mut right, GREETING_BYTES_MAX)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(decode::<Ack>(&second).unwrap(), Ack { sequence: 7 });
        writing.await.unwrap();
        assert!(
            read_frame(&mut right, GREETING_BYTES_MAX)
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn what_is_no_frame_or_too_large_is_refused_before_it_is_read() {
        let good = encode(&hello()).unwrap();
        let read = async |bytes: &[u8], max| read_frame(&mut &*bytes, max).await;
        assert!(read(&good, good.len()).await.is_ok());
        assert!(read(&good, good.len() - 1).await.is_err());
        assert!(read(&good[..good.len() - 1], good.len()).await.is_err());
        assert!(read(b"GET / HTTP/1.1\r\n\r\n", 4_096).await.is_err());
        let mut claims = good.clone();
        claims[7..11].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read(&claims, PAYLOAD_BYTES_MAX).await.is_err());
    }

    /// A frame of a message's schema with any payload.
    fn frame<M: Message>(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let mut frame = [&MAGIC[..], &[FORMAT], &M::SCHEMA.to_be_bytes()].concat();
        frame.extend(length.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// What can be read of a payload is a message, and the same one after another passage.
    fn is_read_or_refused<M: Message + PartialEq + std::fmt::Debug>(payload: &[u8]) {
        if let Ok(read) = decode::<M>(&frame::<M>(payload)) {
            assert_eq!(decode::<M>(&encode(&read).unwrap()).unwrap(), read);
        }
    }

    fn passes<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
        let whole = encode(message).unwrap();
        assert_eq!(decode::<M>(&whole).unwrap(), *message);
        // A part of it is none, nor is one with something behind it.
        for end in 0..whole.len() {
            assert!(decode::<M>(&whole[..end]).is_err(), "{end} bytes");
        }
        assert!(decode::<M>(&[&whole[..], &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            is_read_or_refused::<Hello>(&bytes);
            is_read_or_refused::<Welcome>(&bytes);
            is_read_or_refused::<Ack>(&bytes);
            is_read_or_refused::<TimedAck>(&bytes);
            prop_assert!(decode::<Hello>(&bytes).is_err(), "a frame by chance");
        }

        #[test]
        fn every_message_comes_as_it_was_sent(
            protocol: u16,
            (node, region, refused) in (".{0,40}", ".{0,40}", proptest::option::of(".{0,40}")),
            (sequence, unix_ns) in any::<(u64, u64)>(),
        ) {
            passes(&Welcome { protocol, refused });
            passes(&Ack { sequence });
            passes(&TimedAck { sequence, by: node.clone(), unix_ns });
            passes(&Hello { protocol, node, region });
        }
    }
}
