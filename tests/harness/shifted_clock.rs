//! Processes whose wall clock is off, as that of a machine without NTP is. Other clocks go right.

/// Variables of a process whose wall clock is ahead by so many seconds, or behind.
pub fn by(seconds: i64) -> Vec<(String, String)> {
    [
        ("LD_PRELOAD", library()),
        ("FAKETIME", format!("{seconds:+}s")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Where libfaketime is: in a folder that has the machine's architecture in its name.
fn library() -> String {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").flatten();
    let files = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    let found = files.into_iter().find(|file| file.is_file());
    let found = found.expect("libfaketime is installed; see tests/install-test-deps");
    found.display().to_string()
}
