//! What schemas say of bodies, and which schemas there can be.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn validator(schema: Value) -> BodyValidator {
    let body = BodySchema {
        mode: ValidationMode::Enforce,
        schema,
    };
    BodyValidator::new(&body).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// One row: a schema, a body, and the places of what is wrong with it.
fn check(schema: Value, body: &str, expected: &[&str]) {
    let found = validator(schema.clone()).check(body.as_bytes());
    let found = found
        .err()
        .map(|invalid| invalid.problems)
        .unwrap_or_default();
    let pointers: Vec<&str> = found
        .iter()
        .map(|problem| problem.pointer.as_str())
        .collect();
    assert_eq!(pointers, expected, "{schema} on {body}: {found:?}");
}

/// One row: a schema that is refused, and where and why.
fn check_refused(schema: Value, pointer: &str, code: &str) {
    let body = BodySchema {
        mode: ValidationMode::Enforce,
        schema: schema.clone(),
    };
    let problems = BodyValidator::new(&body)
        .expect_err(&schema.to_string().chars().take(200).collect::<String>());
    let found: Vec<(&str, &str)> = problems
        .iter()
        .map(|problem| (problem.pointer.as_str(), problem.code))
        .collect();
    assert_eq!(found, [(pointer, code)], "{problems:?}");
}

#[test]
fn every_problem_is_told_with_its_place() {
    let order = json!({
        "type": "object",
        "required": ["id", "lines"],
        "properties": {
            "id": {"type": "string", "pattern": "^ord_[0-9]+$"},
            "lines": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/line"}},
            "currency": {"enum": ["EUR", "USD"]},
        },
        "additionalProperties": false,
        "$defs": {"line": {
            "type": "object",
            "required": ["sku"],
            "properties": {"n": {"type": "integer", "minimum": 1}, "price": {"multipleOf": 0.01}},
        }},
    });
    check(
        order.clone(),
        r#"{"id":"ord_1","lines":[{"sku":"a","n":1,"price":19.99}]}"#,
        &[],
    );
    check(
        order.clone(),
        r#"{"id":"ord_1","lines":[{"sku":"a","n":1.0}],"currency":"EUR"}"#,
        &[],
    );
    check(
        order.clone(),
        r#"{"id":"x","lines":[{"n":0},{"sku":"a","n":"1","price":0.005}],"currency":"x","more":1}"#,
        &[
            "/id",
            "/lines/0",
            "/lines/0/n",
            "/lines/1/n",
            "/lines/1/price",
            "/currency",
            "",
        ],
    );
    check(order.clone(), r#"{"id":"ord_1","lines":[]}"#, &["/lines"]);
    check(order.clone(), "[]", &[""]);
    let missing = validator(order).check(b"{}").unwrap_err();
    let details: Vec<&str> = missing
        .problems
        .iter()
        .map(|problem| problem.detail.as_str())
        .collect();
    assert!(details[0].contains("`id` is missing"), "{details:?}");
    assert!(
        missing.summary().starts_with("as a whole: breaks "),
        "{}",
        missing.summary()
    );
}

#[test]
fn values_are_in_no_message() {
    let schema = json!({
        "properties": {
            "a": {"type": "integer"}, "b": {"enum": ["x"]}, "c": {"const": 1}, "d": {"not": {}},
            "e": {"anyOf": [{"type": "null"}, {"maxLength": 1}]}, "f": {"uniqueItems": true},
            "g": {"pattern": "^x"}, "h": {"contains": {"type": "null"}},
            "i": {"propertyNames": {"maxLength": 1}}, "j": {"unevaluatedItems": false},
        },
    });
    let body = r#"{"a":"s3cret","b":"s3cret","c":"s3cret","d":"s3cret","e":"s3cret",
        "f":["s3cret","s3cret"],"g":"s3cret","h":["s3cret"],"i":{"long":"s3cret"},"j":["s3cret"]}"#;
    let invalid = validator(schema).check(body.as_bytes()).unwrap_err();
    assert_eq!(invalid.problems.len(), 10, "{invalid:?}");
    assert!(
        !format!("{invalid:?}{}", invalid.summary()).contains("s3cret"),
        "{invalid:?}"
    );
}

#[test]
fn problems_are_counted_to_a_bound() {
    let schema = json!({"items": {"type": "null"}});
    let body = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    let few = validator(schema.clone())
        .check(body(20).as_bytes())
        .unwrap_err();
    assert_eq!((few.problems.len(), few.more), (20, false));
    let many = validator(schema)
        .check(body(30_000).as_bytes())
        .unwrap_err();
    assert_eq!((many.problems.len(), many.more), (PROBLEMS_MAX, true));
    assert!(
        many.summary().ends_with("(and 19 more at least)"),
        "{}",
        many.summary()
    );
}

#[test]
fn what_cannot_be_read_one_way_is_not_valid() {
    for (body, code) in [
        ("", "unreadable"),
        ("{\"a\":1", "unreadable"),
        (r#"{"a":1,"a":2}"#, "unreadable"),
        ("[1e400]", "number-out-of-range"),
        ("[-1e999999999999]", "number-out-of-range"),
        (&"9".repeat(310), "number-out-of-range"),
        (&"[".repeat(100), "unreadable"),
    ] {
        let invalid = validator(json!(true)).check(body.as_bytes()).unwrap_err();
        assert_eq!(invalid.problems[0].code, code, "{body}");
    }
    let at = validator(json!(true))
        .check(br#"{"a/b":[1,1e400]}"#)
        .unwrap_err();
    assert_eq!(at.problems[0].pointer, "/a~1b/1");
    check(json!({"type": "integer"}), "12345678901234567890123", &[]);
    check(
        json!({"maximum": 18446744073709551615_u64}),
        "18446744073709551615",
        &[],
    );
    check(
        json!({"maximum": 9007199254740992_u64}),
        "9007199254740993",
        &[""],
    );
    check(json!({"const": 1}), "1.0", &[]);
    check(json!({"const": "é"}), r#""\u00e9""#, &[]);
    check(json!({"required": ["é"]}), r#"{"\u00e9":1}"#, &[]);
    check(json!({"maxLength": 1}), r#""\ud83d\ude00""#, &[]);
    check(json!(false), "1", &[""]);
    check(json!({"format": "email"}), r#""no address""#, &[]);
}

#[test]
fn schemas_stay_within_themselves() {
    check_refused(
        json!({"$ref": "https://x.example/s"}),
        "/schema/$ref",
        "schema-reference",
    );
    check_refused(
        json!({"$ref": "file:///etc/passwd"}),
        "/schema/$ref",
        "schema-reference",
    );
    check_refused(
        json!({"items": {"$ref": "other.json"}}),
        "/schema/items/$ref",
        "schema-reference",
    );
    check_refused(json!({"$ref": "#/x"}), "/schema", "schema-reference");
    check_refused(json!({"$ref": "#no"}), "/schema", "schema-reference");
    check_refused(
        json!({"not": {"$id": "https://x.example/"}}),
        "/schema/not/$id",
        "schema-reference",
    );
    check_refused(
        json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
        "/schema/$schema",
        "schema-dialect",
    );
    check_refused(
        json!({"$schema": "https://x.example/meta"}),
        "/schema/$schema",
        "schema-dialect",
    );
    check(
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x.example/s", "type": "null"}),
        "1",
        &[""],
    );
    check(
        json!({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "null"}}}),
        "1",
        &[""],
    );
    check(
        json!({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}}),
        "1",
        &[""],
    );
}

#[test]
fn schemas_are_well_formed_and_their_patterns_linear() {
    check_refused(json!([]), "/schema", "schema-invalid");
    check_refused(json!({"type": "strin"}), "/schema/type", "schema-invalid");
    check_refused(
        json!({"properties": {"a": 1}}),
        "/schema/properties/a",
        "schema-invalid",
    );
    check_refused(json!({"minimum": "1"}), "/schema/minimum", "schema-invalid");
    check_refused(
        json!({"items": {"pattern": "(?=a)b"}}),
        "/schema/items/pattern",
        "pattern-look-around",
    );
    check_refused(
        json!({"pattern": r"(a)\1"}),
        "/schema/pattern",
        "pattern-backreference",
    );
    check_refused(
        json!({"pattern": "("}),
        "/schema/pattern",
        "pattern-invalid",
    );
    check_refused(
        json!({"pattern": "x".repeat(1_025)}),
        "/schema/pattern",
        "pattern-too-long",
    );
    check_refused(
        json!({"pattern": r"\w{999}{999}"}),
        "/schema/pattern",
        "pattern-too-large",
    );
    check_refused(
        json!({"patternProperties": {"(?!a)b": {}}}),
        "/schema/patternProperties/(?!a)b",
        "pattern-look-around",
    );
    check(
        json!({"pattern": r"^[\w.\-]+\/\d{2}$"}),
        r#""a.b-c/12""#,
        &[],
    );
    check(json!({"pattern": r"^\d$"}), r#""٣""#, &[""]);
}

#[test]
fn schemas_are_bounded() {
    check_refused(
        json!({"description": "x".repeat(70_000)}),
        "/schema",
        "schema-too-large",
    );
    let many: Vec<Value> = (0..3_000).map(|_| json!({})).collect();
    check_refused(json!({"prefixItems": many}), "/schema", "schema-too-large");
    check_refused(json!({"$ref": "#"}), "/schema", "schema-too-complex");
    check_refused(
        json!({"allOf": [{"$ref": "#"}]}),
        "/schema",
        "schema-too-complex",
    );
    let circle = json!({"$defs": {
        "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]},
        "b": {"not": {"$ref": "#/$defs/a"}},
    }});
    check_refused(circle, "/schema", "schema-too-complex");
    // Twice the next, twenty times: a million subschemas for one value.
    let mut defs = serde_json::Map::new();
    for at in 0..20 {
        let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
        defs.insert(format!("d{at}"), json!({"allOf": [next, next]}));
    }
    defs.insert("d20".into(), json!({"type": "null"}));
    check_refused(
        json!({"$ref": "#/$defs/d0", "$defs": defs}),
        "/schema",
        "schema-too-complex",
    );
    let mut chain = json!({"type": "null"});
    for _ in 0..30 {
        chain = json!({"not": chain});
    }
    check_refused(chain, "/schema", "schema-too-complex");
    let mut deep = json!({});
    for _ in 0..40 {
        deep = json!({"properties": {"a": deep}});
    }
    check_refused(
        deep,
        &format!("/schema{}", "/properties/a".repeat(33)),
        "schema-too-large",
    );
}

/// Long chains of references are compiled and followed on the stack of a worker.
#[test]
fn a_worker_has_stack_enough() {
    let mut defs = serde_json::Map::new();
    for at in 0..900 {
        let next = format!("#/$defs/d{}", at + 1);
        defs.insert(
            format!("d{at}"),
            json!({"properties": {"a": {"$ref": next}}}),
        );
    }
    defs.insert("d900".into(), json!({}));
    let long = json!({"$ref": "#/$defs/d0", "$defs": defs});
    // As many calls as CALLS_MAX lets through, at the deepest body and on the way to it.
    let mut wide =
        json!({"properties": {"a": {"$ref": "#"}}, "items": {"$ref": "#"}, "maxProperties": 1});
    for _ in 0..5 {
        wide = json!({"allOf": [wide]});
    }
    let run = move || {
        let deep = format!("{}null{}", "{\"a\":".repeat(63), "}".repeat(63));
        assert!(validator(long).check(deep.as_bytes()).is_ok());
        let wide = validator(wide);
        assert!(wide.check(deep.as_bytes()).is_ok());
        let broken = deep.replace("null", "{\"b\":1,\"c\":2}");
        let invalid = wide.check(broken.as_bytes()).unwrap_err();
        assert_eq!(invalid.problems[0].code, "schema-violated", "{invalid:?}");
    };
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
    thread.spawn(run).unwrap().join().unwrap();
}

/// Two ways to each child: as many evaluations as two to the power of the depth, were nothing
/// remembered or bounded.
#[test]
fn recursion_over_a_body_is_bounded() {
    let twice = json!({
        "properties": {"a": {"$ref": "#"}},
        "patternProperties": {"^a": {"$ref": "#"}},
        "additionalProperties": {"$ref": "#"},
        "oneOf": [
            {"required": ["b"], "properties": {"a": {"$ref": "#"}}},
            {"required": ["c"], "properties": {"a": {"$ref": "#"}}},
            {"properties": {"a": {"$ref": "#"}}},
        ],
        "unevaluatedProperties": false,
    });
    let validator = validator(twice);
    let deep = format!("{}1{}", "{\"a\":".repeat(60), "}".repeat(60));
    let _ = validator.check(deep.as_bytes());
    let broken = format!(
        "{}1{}",
        "{\"a\":".repeat(60),
        ",\"b\":1,\"c\":2}".repeat(60)
    );
    assert!(validator.check(broken.as_bytes()).is_err());
    let mut several = vec![json!({"type": "null"}); 900];
    several.push(json!({"type": "integer"}));
    let costly = json!({"items": {"anyOf": several}});
    let body = format!("[{}]", vec!["1"; 100_000].join(","));
    let invalid = super::tests::validator(costly)
        .check(body.as_bytes())
        .unwrap_err();
    assert_eq!(invalid.problems[0].code, "too-complex");
}

#[test]
fn problems_of_both_bodies_are_told_together() {
    let validation: Validation = serde_json::from_value(json!({
        "request": {"schema": {"type": "x"}},
        "response": {"mode": "report", "schema": {"$ref": "other"}},
    }))
    .unwrap();
    let pointers: Vec<String> = validation
        .validate()
        .into_iter()
        .map(|p| p.pointer)
        .collect();
    assert_eq!(pointers, ["/request/schema/type", "/response/schema/$ref"]);
    assert!(Validation::default().is_empty() && Validation::default().validate().is_empty());
    for wrong in [
        json!({"requests": {}}),
        json!({"request": {"mode": "warn", "schema": true}}),
        json!({"request": {"mode": "report"}}),
        json!({"request": {"schema": true, "draft": 7}}),
    ] {
        assert!(serde_json::from_value::<Validation>(wrong).is_err());
    }
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!(true),
        json!(false),
        json!({"type": "integer"}),
        json!({"type": ["null", "string"]}),
        json!({"minimum": 1, "exclusiveMaximum": 10}),
        json!({"maxLength": 2, "pattern": "^a"}),
        json!({"enum": [1, "a", null, [1, 2], {"a": 1}]}),
        json!({"const": {"a": 1.0}}),
        json!({"multipleOf": 0.5}),
        json!({"required": ["a"], "maxProperties": 2}),
        json!({"minItems": 1, "uniqueItems": true}),
    ]);
    leaf.prop_recursive(4, 24, 4, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            inner.clone().prop_map(
                |s| json!({"properties": {"a": s}, "additionalProperties": {"type": "integer"}})
            ),
            inner.clone().prop_map(
                |s| json!({"patternProperties": {"^[ab]": s}, "unevaluatedProperties": false})
            ),
            inner
                .clone()
                .prop_map(|s| json!({"prefixItems": [s], "items": {"type": "integer"}})),
            inner
                .clone()
                .prop_map(|s| json!({"contains": s, "minContains": 1, "maxContains": 2})),
            inner.clone().prop_map(|s| json!({"not": s})),
            inner.clone().prop_map(|s| json!({"propertyNames": s})),
            inner
                .clone()
                .prop_map(|s| json!({"dependentSchemas": {"a": s}, "unevaluatedItems": false})),
            two.clone().prop_map(|(a, b)| json!({"allOf": [a, b]})),
            two.clone().prop_map(|(a, b)| json!({"anyOf": [a, b]})),
            two.clone().prop_map(|(a, b)| json!({"oneOf": [a, b]})),
            two.prop_map(|(a, b)| json!({"if": a, "then": b, "else": {"type": "object"}})),
        ]
    })
}

fn body() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(1),
        json!(2.5),
        json!(10),
        json!("a"),
        json!("abc"),
        json!("é"),
    ]);
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[abc]", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Reading the text gives what reading a parsed value gives.
    #[test]
    fn text_and_values_are_judged_alike(schema in schema(), body in body()) {
        let theirs = jsonschema::options().offline().build(&schema).unwrap();
        let ours = validator(schema.clone()).check(body.to_string().as_bytes());
        prop_assert_eq!(ours.is_ok(), theirs.is_valid(&body), "{} {}", schema, body);
        if let Err(invalid) = ours {
            let errors = theirs.iter_errors(&body).take(PROBLEMS_MAX);
            let places: Vec<String> =
                errors.map(|error| error.instance_path().as_str().to_owned()).collect();
            let found: Vec<String> = invalid.problems.into_iter().map(|p| p.pointer).collect();
            prop_assert_eq!(found, places);
        }
    }
}

#[test]
fn no_pattern_is_compiled_beyond_what_a_schema_may_take() {
    let pattern = |n| (format!(r"\w{{13}}{n:05}"), serde_json::json!({}));
    let patterns = (0..120).map(pattern);
    let patterns: serde_json::Map<_, _> = patterns.collect();
    let schema = serde_json::json!({ "patternProperties": patterns });
    let before = crate::pattern_size::made_bytes();
    let problems = super::bounds::judge(&schema).unwrap_err();
    assert_eq!(problems[0].code, "schema-too-large");
    let made = crate::pattern_size::made_bytes() - before;
    assert!(made < 6 * 1024 * 1024, "{made}");
}
