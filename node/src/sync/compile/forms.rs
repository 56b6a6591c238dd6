//! Makes the forms that are due: where nothing is served yet, by as many threads as there are
//! cores, since callers wait for them; else by one, which leaves the others to requests.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use proto::id::ProxyId;
use proto::object::ObjectId;
use proto::proxy::Proxy;
use proto::store::follow::OrgState;
use proto::store::load::Fault;
use tokio::runtime::Handle;

use super::Compiler;
use super::compiled::{Compiled, last_good};
use super::form::OrgCompiler;
use super::naming::Replaced;
use super::policies::Policies;
use crate::snapshot::CompiledProxy;

/// So many forms keep a thread busy for longer than it takes to start one.
const FORMS_PER_THREAD: usize = 64;

/// What is to be made of an organisation.
pub(super) struct Due<'w> {
    /// What it is now.
    pub(super) state: &'w Arc<OrgState>,
    /// What stays of what was made before.
    pub(super) now: Compiled,
    /// What is made anew.
    pub(super) proxies: Vec<(ProxyId, &'w Proxy)>,
    /// What hangs on these and on what they are made of.
    pub(super) policies: Policies,
}

/// The form of a proxy, or why there is none.
type Form = Result<Arc<CompiledProxy>, String>;

/// The forms of an organisation's proxies.
#[derive(Default)]
pub(super) struct Made<'w> {
    forms: Vec<(ProxyId, &'w Proxy, Form)>,
    /// What of them is not applied as it stands.
    faults: Vec<Fault>,
}

/// Makes all forms that are due, those of each organisation in its place.
pub(super) fn made<'w>(compiler: &Compiler, due: &[Due<'w>], is_first: bool) -> Vec<Made<'w>> {
    let forms: usize = due.iter().map(|due| due.proxies.len()).sum();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = match is_first {
        true => cores.min(forms / FORMS_PER_THREAD),
        false => 1,
    };
    by_threads(compiler, due, threads)
}

/// The same by so many threads.
pub(super) fn by_threads<'w>(
    compiler: &Compiler,
    due: &[Due<'w>],
    threads: usize,
) -> Vec<Made<'w>> {
    let part = |at| {
        due.iter()
            .map(move |due| part(compiler, due, (at, threads)))
    };
    if threads <= 1 {
        return part(0).collect();
    }
    // Gateways of other regions are looked after from where they are met first.
    let runtime = Handle::try_current().ok();
    let (runtime, part) = (runtime.as_ref(), &part);
    let parts: Vec<Vec<Made<'w>>> = thread::scope(|scope| {
        let make = |at| {
            scope.spawn(move || {
                let _entered = runtime.map(Handle::enter);
                part(at).collect()
            })
        };
        let making: Vec<_> = (0..threads).map(make).collect();
        let made = making.into_iter().map(thread::ScopedJoinHandle::join);
        made.map(|part| part.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let mut whole: Vec<Made<'w>> = due.iter().map(|_| Made::default()).collect();
    for part in parts {
        for (whole, part) in whole.iter_mut().zip(part) {
            whole.forms.extend(part.forms);
            whole.faults.extend(part.faults);
        }
    }
    for made in &mut whole {
        made.forms.sort_by_key(|(id, ..)| *id);
    }
    whole
}

/// One of several parts of an organisation's forms: all that have the same target are in one, which
/// compiles it once.
fn part<'w>(compiler: &Compiler, due: &Due<'w>, (at, parts): (usize, usize)) -> Made<'w> {
    let mut scope = OrgCompiler::new(compiler, due);
    let is_in = |proxy: &Proxy| match u128::try_from(parts) {
        Ok(parts @ 2..) => usize::try_from(proxy.target_id.bits() % parts) == Ok(at),
        _ => true,
    };
    let mut forms = Vec::with_capacity(due.proxies.len() / parts.max(1));
    for (id, proxy) in due.proxies.iter().filter(|(_, proxy)| is_in(proxy)) {
        let form = scope.proxy(*id, proxy).map(Arc::new);
        if let Err(why) = &form {
            scope.fault(ObjectId::Proxy(*id), why.clone());
        }
        forms.push((*id, *proxy, form));
    }
    Made {
        forms,
        faults: scope.faults,
    }
}

impl Due<'_> {
    /// The organisation with what was made.
    pub(super) fn taking(
        self,
        made: Made<'_>,
        own_region: &str,
        replaced: &mut Replaced,
    ) -> Compiled {
        let (mut now, state) = (self.now, self.state);
        now.faulty.clear();
        for (id, proxy, form) in made.forms {
            match form {
                Ok(form) => {
                    if form.target.forbidden || form.target.endpoints.are_none() {
                        now.faulty.insert(id);
                    }
                    replaced.come.push((now.slug.clone(), form.clone()));
                    if let Some(old) = now.proxies.insert(id, form) {
                        old.version.ends();
                        replaced.gone.push((now.slug.clone(), old));
                    }
                }
                Err(_) => {
                    now.faulty.insert(id);
                    let gone = last_good(&mut now.proxies, (id, proxy), state, own_region);
                    let gone = gone.map(|form| (now.slug.clone(), form));
                    replaced.gone.extend(gone);
                }
            }
        }
        now.faults = made.faults;
        // After the end of all that is replaced.
        now.version.store(state.config.head.n, Ordering::Release);
        now.state = Arc::clone(state);
        now
    }
}
