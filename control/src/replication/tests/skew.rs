//! Control planes of different releases: either side may be an earlier one, down to
//! [`PROTOCOL_MIN`], or one that is later than this.

use std::io;

use proto::tree::SYSTEM_ORG;
use proto::wire;
use proto::wire::link::{GREETING_BYTES_MAX, Welcome, read_frame, write_frame};
use proto::wire::replication::{PROTOCOL, PROTOCOL_MIN, RegionHello};

use super::super::connection::Connection;
use super::net::{
    Region, Signing, create_credential, create_target, installation_of, rename, set_secret,
};
use super::pull::{EQUAL, opened};

/// A way from eu to us on which us hears that eu speaks `follower`, and eu that us speaks `home`.
async fn way(us: &Region, follower: u16, home: u16) -> io::Result<Connection> {
    let (near, mut to_eu) = tokio::io::duplex(64 * 1024);
    let (mut to_us, mut far) = tokio::io::duplex(64 * 1024);
    let source = us.source.clone();
    tokio::spawn(async move {
        if let Ok(Some(greeting)) = read_frame(&mut far, GREETING_BYTES_MAX).await {
            let peer = "127.0.0.1:1".parse().unwrap();
            let _ = source.attend(far, peer, &greeting, |_| true).await;
        }
    });
    tokio::spawn(async move {
        let hello = read_frame(&mut to_eu, GREETING_BYTES_MAX).await?;
        let mut hello: RegionHello = wire::decode(&hello.unwrap()).unwrap();
        assert_eq!(hello.protocol, PROTOCOL);
        hello.protocol = follower;
        write_frame(&mut to_us, &hello).await?;
        let welcome = read_frame(&mut to_us, GREETING_BYTES_MAX).await?;
        let mut welcome: Welcome = wire::decode(&welcome.unwrap()).unwrap();
        assert_eq!(welcome.protocol, PROTOCOL);
        welcome.protocol = home;
        write_frame(&mut to_eu, &welcome).await?;
        tokio::io::copy_bidirectional(&mut to_eu, &mut to_us).await
    });
    Connection::over(Box::new(near), ("eu", "us")).await
}

/// Home `us` and `eu`, which list no keys: earlier releases know none.
async fn two() -> (Region, Region) {
    let mut signing = Signing::default();
    ["us", "eu"].iter().for_each(|name| signing.rotate(name));
    signing.listed.clear();
    let (_net, regions) = installation_of(&["us", "eu"], signing).await;
    let mut regions = regions.into_iter();
    (regions.next().unwrap(), regions.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_and_a_home_of_different_releases_understand_one_another() {
    let earlier = (PROTOCOL_MIN..=PROTOCOL).map(|protocol| (protocol, protocol));
    // A later one goes on with what this one speaks, whichever side it is.
    let later = [(PROTOCOL + 1, PROTOCOL), (PROTOCOL, PROTOCOL + 1)];
    for (follower, home) in earlier.chain(later) {
        let (us, eu) = two().await;
        let (org, said) = (us.org(), format!("follower {follower}, home {home}"));
        us.seen(SYSTEM_ORG).await;
        us.seen(org).await;
        let first = way(&us, follower, home).await.unwrap();
        eu.replication.round(&first, &None).await.unwrap();
        for step in 0..3 {
            let operations = match step {
                0 => vec![
                    create_target(1, "one"),
                    create_credential(&us.publisher, 1, "first"),
                ],
                1 => vec![rename(1, "two"), set_secret(&us.publisher, 1, "second")],
                _ => vec![rename(1, "three")],
            };
            us.publish(org, operations).await;
            us.seen(org).await;
            let way = way(&us, follower, home).await.unwrap();
            assert_eq!(way.protocol(), follower.min(home), "{said}");
            eu.replication.round(&way, &None).await.unwrap();
            assert_eq!(eu.dump(EQUAL).await, us.dump(EQUAL).await, "{said}, {step}");
            let secret = if step == 0 { "first" } else { "second" };
            assert_eq!(opened(&eu).await, [secret], "{said}, {step}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_old_is_told_so_whichever_side_it_is() {
    let (us, _eu) = two().await;
    let old = PROTOCOL_MIN - 1;
    for (follower, home, why) in [
        (old, PROTOCOL, "region eu runs an older program"),
        (PROTOCOL, old, "region us runs an older program"),
    ] {
        let error = way(&us, follower, home).await.err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
}
