//! Disks so small that tests can fill them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// A small disk, taken away when dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts it at a new folder, which takes root.
    pub fn mount(place: PathBuf, mib: usize) -> Self {
        std::fs::create_dir(&place).expect("a folder can be made");
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m,mode=0700"),
                "none",
            ])
            .arg(&place)
            .status();
        assert!(mounted.expect("mount runs").success(), "root can mount");
        Self(place)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all the room that there is.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("a file can be made");
        while file.write_all(&[0; 4_096]).is_ok() {}
    }

    /// Gives it back.
    pub fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("the file can be removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
