//! What detectors find, and what they leave alone: the corpus, and bounds on their work.

use proptest::prelude::*;

use super::*;

/// One line each: `detector + text with ⟦finds⟧` or `detector - text that holds none`. `\n`, `\t`
/// and `\u{…}` stand for characters.
const CORPUS: &str = include_str!("corpus.txt");

fn detect(detector: Detector, text: &str) -> String {
    let redactor = Redactor::new(&[detector], None);
    let mut finds = Vec::new();
    redactor
        .find(text, &mut Work::for_one_body(), &mut finds)
        .unwrap();
    marked(text, finds, &mut Redactions::default())
}

fn unescaped(text: &str) -> String {
    let named = text.replace(r"\n", "\n").replace(r"\t", "\t");
    let mut parts = named.split(r"\u{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_once('}').expect("a closed escape");
        let code = u32::from_str_radix(code, 16).expect("hexadecimal");
        out.push(char::from_u32(code).expect("a character"));
        out.push_str(rest);
    }
    out
}

#[test]
fn the_corpus_is_found_and_nothing_else() {
    let mut wrong = Vec::new();
    let mut rows = [[0; 2]; Detector::ALL.len()];
    let lines = CORPUS.lines().enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let mut parts = line.splitn(3, ' ');
        let (Some(name), Some(sign), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            panic!("line {}: `{line}` has not three parts", at + 1);
        };
        let place = Detector::ALL
            .iter()
            .position(|known| known.as_str() == name);
        let place = place.unwrap_or_else(|| panic!("line {}: no detector `{name}`", at + 1));
        let text = unescaped(text);
        let plain = text.replace(['⟦', '⟧'], "");
        let mut expected = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('⟦') {
            expected.push_str(before);
            expected.push_str(&format!("[{name}]"));
            rest = after.split_once('⟧').expect("a closed mark").1;
        }
        expected.push_str(rest);
        assert_eq!(sign == "+", expected != text, "line {}: `{line}`", at + 1);
        rows[place][usize::from(sign == "+")] += 1;
        let found = detect(Detector::ALL[place], &plain);
        if found != expected {
            wrong.push(format!("line {}: {line}\n    became {found}", at + 1));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    for (detector, [without, with]) in Detector::ALL.iter().zip(rows) {
        let name = detector.as_str();
        assert!(
            without >= 10 && with >= 10,
            "{name}: {with} finds, {without} others"
        );
    }
}

/// A trigger that misses what its detector finds would hide it.
#[test]
fn nothing_is_found_that_no_trigger_announces() {
    for line in CORPUS.lines().filter(|line| line.contains('⟦')) {
        let text = unescaped(line).replace(['⟦', '⟧'], "");
        for (what, detector) in Detector::ALL.iter().enumerate() {
            let mut count = 0;
            detector.find(&text, &mut |_| count += 1);
            assert!(
                count == 0 || TRIGGERS.matches(&text).matched(what),
                "{detector:?}: {text}"
            );
        }
    }
}

#[test]
fn all_detectors_together_agree_on_one_name() {
    let all = Redactor::new(&Detector::ALL, None);
    for (text, expected) in [
        (
            "pay DE89 3704 0044 0532 0130 00 or 4111 1111 1111 1111",
            "pay [iban] or [card]",
        ),
        ("postgres://app:pw@db.example.com/x", "postgres://[token]/x"),
        (
            "call +1 212 555 0187, mail a@b.example",
            "call [phone], mail [email]",
        ),
        ("078-05-1120", "[national_id]"),
        ("nothing at all", "nothing at all"),
    ] {
        let mut finds = Vec::new();
        all.find(text, &mut Work::for_one_body(), &mut finds)
            .unwrap();
        assert_eq!(marked(text, finds, &mut Redactions::default()), expected);
    }
}

/// Texts that make a careless search start over and over.
#[test]
fn time_is_linear_in_the_text() {
    let all = Redactor::new(&Detector::ALL, None);
    for piece in [
        "@",
        "a@",
        "a.",
        "%40",
        "1",
        "1 ",
        "4111 ",
        "0",
        "+1",
        "(0",
        "00 4",
        "DE89",
        "eyJ",
        "eyJ-",
        "eyJ.",
        "sk-",
        "://",
        "://a:",
        "Bearer ",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "AB12",
        "756.",
        "12.",
        "a@b.",
        "é@",
        "\u{a0}1",
    ] {
        let text = piece.repeat(400_000 / piece.len());
        let mut finds = Vec::new();
        // A search that is not linear takes minutes here.
        all.find(&text, &mut Work::for_one_body(), &mut finds)
            .unwrap();
        let _ = marked(&text, finds, &mut Redactions::default());
    }
}

proptest! {
    #[test]
    fn any_text_is_searched_without_panic(text in "\\PC*", numbers in "[0-9 +().@:/%A-Z-]{0,80}") {
        for text in [&text, &numbers] {
            for detector in Detector::ALL {
                detect(detector, text);
            }
        }
    }
}
