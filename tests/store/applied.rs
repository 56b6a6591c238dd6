//! What a region that follows tells of one organisation twice in one ask. No transaction may have a
//! key twice: our client of etcd refuses one, and so would etcd.

use std::sync::Arc;

use control::regions::{Homes, Peer, Regions};
use control::replication::{ANSWER_BYTES, NotGiven, Source};
use proto::id::OrgId;
use proto::keys;
use proto::seal::Keyring;
use proto::store::Store;
use proto::tree::Hash;
use proto::version::Epoch;
use proto::wire::link::{Welcome, read_frame, write_frame};
use proto::wire::replication::{
    Answer, AnswerPart, Ask, NumberedAsk, PROTOCOL, Position, RegionHello,
};
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX};
use tokio::io::DuplexStream;
use tokio::sync::watch;

use crate::runner::block_on;

const FRAME_BYTES: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;

/// Home `us` on a store, which `eu` may ask.
fn source(store: Arc<dyn Store>) -> Source {
    let eu = Keyring::generate("eu");
    Source {
        homes: Homes::follow(store.clone(), "us").0,
        store,
        worlds: watch::channel(Arc::default()).1,
        regions: Arc::new(Regions {
            own: "us".into(),
            home: "us".into(),
            signers: Vec::new(),
            peers: vec![Peer {
                name: "eu".into(),
                control: "http://127.0.0.1:1".into(),
                gateway: None,
                replication: vec!["127.0.0.1:1".into()],
                public: eu.public().expect("keys"),
                signers: Vec::new(),
            }],
        }),
        shared: Arc::default(),
        status: Arc::default(),
        not_given: NotGiven::default(),
        answer_bytes: ANSWER_BYTES,
    }
}

async fn read<M: wire::Message>(stream: &mut DuplexStream) -> M {
    let frame = read_frame(stream, FRAME_BYTES).await.expect("a stream");
    wire::decode(&frame.expect("a frame")).expect("a message")
}

/// Of what is told twice the last stays.
pub fn told_twice(store: Arc<dyn Store>) {
    block_on(async {
        let source = source(store.clone());
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let hello = RegionHello {
            protocol: PROTOCOL,
            region: "eu".into(),
        };
        let greeting = wire::encode(&hello).expect("a greeting");
        let peer = "127.0.0.1:1".parse().expect("an address");
        let asking = async {
            let welcome: Welcome = read(&mut near).await;
            assert_eq!(welcome.refused, None);
            let org = OrgId::from_bits(7);
            let at = |n| Position {
                epoch: Epoch {
                    counter: 1,
                    region: "us".into(),
                },
                n,
                hash: Hash::of(b"x"),
            };
            let ask = Ask::Applied(vec![(org, at(1)), (org, at(2))]);
            let ask = NumberedAsk { number: 1, ask };
            write_frame(&mut near, &ask).await.expect("a stream");
            let part: AnswerPart = read(&mut near).await;
            let answer: Answer = wire::decode(&part.bytes).expect("an answer");
            assert!(matches!(answer, Answer::Noted), "{answer:?}");
            let kept = store.get(&keys::replicated("eu", org)).await;
            let kept = kept.expect("a store").value.expect("what was told");
            let kept: Position = serde_json::from_slice(&kept.value).expect("a position");
            assert_eq!(kept, at(2));
        };
        tokio::select! {
            ended = source.attend(far, peer, &greeting, |_| true) => panic!("{ended:?}"),
            () = asking => {}
        }
    });
}
