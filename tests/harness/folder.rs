//! Folders of what tests start. They are in memory where there is room for them, so that a disk
//! which others keep busy decides no test; what a disk does is tested in `tests/chaos`.
#![allow(dead_code, reason = "each test program uses a part of it")]

use tempfile::TempDir;

/// Where a system keeps files in memory.
const MEMORY: &str = "/dev/shm";
/// Room for what all tests that run at a time keep.
const ROOM_BYTES: u64 = 4 << 30;

/// A new folder that goes away when it is dropped.
pub fn fresh() -> TempDir {
    let room = rustix::fs::statvfs(MEMORY).map(|fs| fs.f_bavail * fs.f_frsize);
    match room.is_ok_and(|bytes| bytes >= ROOM_BYTES) {
        true => TempDir::new_in(MEMORY).expect("a temporary folder can be made"),
        false => on_disk(),
    }
}

/// The same where the system keeps temporary files, which is a disk as a rule.
pub fn on_disk() -> TempDir {
    TempDir::new().expect("a temporary folder can be made")
}
