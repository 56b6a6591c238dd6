//! The contract suite of the stores: one list of cases, run on the embedded store and on etcd.
//!
//! A test's name says store and case (`etcd::watch_from_the_past`); `cargo test --test store NAME`
//! picks by part of the name. A program of its own rather than `#[test]` functions, so that there
//! is one list and no case can be forgotten on one of the stores. The stores run side by side, the
//! cases of one store one after another: they share an etcd, whose revision and compaction are one.

#[path = "../harness/address.rs"]
mod address;
mod applied;
mod audit;
mod compaction;
#[path = "../harness/disk.rs"]
mod disk;
mod embedded;
mod etcd;
#[path = "../harness/etcd.rs"]
mod etcd_server;
#[path = "../harness/folder.rs"]
mod folder;
mod lease;
mod race;
mod range;
mod runner;
#[path = "../harness/signals.rs"]
mod signals;
mod steps;
mod txn;
mod watch;

use std::process::ExitCode;
use std::sync::Arc;

use proto::store::Store;

use runner::{Case, Trial, case};

fn main() -> ExitCode {
    if let Some(code) = embedded::run_as_child() {
        return code;
    }
    let mut on_embedded: Vec<Trial> = contract().into_iter().map(embedded::trial).collect();
    on_embedded.extend(embedded::trials());
    runner::run(vec![on_embedded, etcd::trials(contract())])
}

/// What every store does.
fn contract() -> Vec<Case> {
    vec![
        case(
            "a_key_is_created_only_when_absent",
            txn::created_only_when_absent,
        ),
        case(
            "a_key_is_changed_only_at_the_revision_read",
            txn::changed_only_at_revision,
        ),
        case(
            "a_key_is_changed_only_with_the_value_read",
            txn::changed_only_with_value,
        ),
        case(
            "a_key_is_changed_only_when_present",
            txn::changed_only_when_present,
        ),
        case(
            "a_conflict_answers_what_it_was_asked_to_read",
            txn::conflict_reads,
        ),
        case("a_txn_is_one_revision", txn::is_one_revision),
        case(
            "a_txn_that_changes_nothing_has_no_revision",
            txn::without_change,
        ),
        case("a_txn_that_makes_no_sense_is_refused", txn::refused),
        case(
            "the_largest_txn_is_taken_and_a_larger_one_refused",
            txn::largest,
        ),
        case(
            "a_key_put_after_its_deletion_is_a_new_one",
            txn::reincarnation,
        ),
        case("a_value_holds_every_byte", txn::every_byte),
        case("an_absent_key_is_none_at_a_revision", txn::absent),
        case(
            "pages_are_of_one_revision_while_writes_go_on",
            range::pages_while_writing,
        ),
        case("keys_are_in_byte_order", range::byte_order),
        case("several_keys_are_read_in_their_order", range::several),
        case("a_page_begins_after_a_key", range::after),
        case("a_page_keeps_its_limit", range::limit),
        case("large_values_come_in_more_pages", range::large_values),
        case("a_range_that_makes_no_sense_is_refused", range::refused),
        case("a_watch_begins_in_the_past", watch::from_the_past),
        case("a_watch_begins_now", watch::from_now),
        case("a_watch_begins_in_the_future", watch::from_the_future),
        case(
            "a_watch_sees_a_revision_as_one_change",
            watch::one_change_per_revision,
        ),
        case("a_watch_sees_its_prefix_only", watch::prefix_only),
        case(
            "a_watch_catches_up_without_gap_or_double",
            watch::catches_up,
        ),
        case("a_watch_takes_large_changes", watch::large_changes),
        case(
            "a_watch_loses_nothing_when_waiting_is_given_up",
            watch::given_up,
        ),
        case("a_watch_that_makes_no_sense_is_refused", watch::refused),
        case(
            "history_below_a_compaction_is_gone",
            compaction::history_is_gone,
        ),
        case("values_outlive_a_compaction", compaction::values_stay),
        case("a_live_watch_outlives_a_compaction", compaction::live_watch),
        case(
            "a_watch_may_begin_at_the_compacted_revision",
            compaction::watch_from_it,
        ),
        case(
            "a_compaction_may_be_repeated_but_not_ahead",
            compaction::repeated,
        ),
        case(
            "the_keys_of_a_lease_go_in_one_change_when_it_ends",
            lease::ends,
        ),
        case(
            "a_lease_that_is_kept_alive_outlives_another",
            lease::kept_alive,
        ),
        case("an_unknown_lease_is_not_found", lease::unknown),
        case("a_revoked_lease_takes_its_keys_along", lease::revoked),
        case("a_key_put_again_without_its_lease_stays", lease::left),
        case("writers_of_one_key_lose_no_increment", race::increments),
        case("readers_see_what_was_acknowledged", race::read_your_writes),
        case("audit_entries_of_many_are_one_chain", audit::one_chain),
        case(
            "the_oldest_audit_entries_leave_and_the_chain_holds",
            audit::oldest_leave,
        ),
        case("a_store_serves_any_runtime", race::any_runtime),
    ]
}

/// A store as the cases see it.
type AnyStore = Arc<dyn Store>;
