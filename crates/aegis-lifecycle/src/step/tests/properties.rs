//! Random lives: requests, outcomes in any order, failures, late events of earlier VMs. The world below is what
//! a driver and its ports can do at most; it checks what must be true of every effect.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use aegis_proto::control::{StartFailure, StartFailureKind};
use aegis_proto::worker::{ExitReason, Exited};
use aegis_types::{ExitStatus, IdlePolicy, InstanceState, Policy, RestartPolicy, VmId};
use proptest::prelude::*;

use crate::error::Denied;
use crate::ports::SystemMessage;
use crate::step::{
    Ask, BootProblem, Defaults, Effect, Event, Phase, RequestId, Rules, State, Timer, Use, Users, created,
    step,
};

#[derive(Debug, Clone)]
enum Op {
    Ask { kind: u8, registry_fails: bool },
    Progress { which: usize, good: bool, variant: u8 },
    Die { reason: u8 },
    Elapse { which: usize },
    EndUse { which: usize },
    Activity,
    Late { kind: u8 },
    Shutdown { save: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0..15u8, prop::bool::weighted(0.1)).prop_map(|(kind, registry_fails)| Op::Ask { kind, registry_fails }),
        12 => (any::<usize>(), prop::bool::weighted(0.75), 0..3u8)
            .prop_map(|(which, good, variant)| Op::Progress { which, good, variant }),
        1 => (0..5u8).prop_map(|reason| Op::Die { reason }),
        4 => any::<usize>().prop_map(|which| Op::Elapse { which }),
        3 => any::<usize>().prop_map(|which| Op::EndUse { which }),
        1 => Just(Op::Activity),
        2 => (0..13u8).prop_map(|kind| Op::Late { kind }),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let restart = prop_oneof![
        3 => Just(RestartPolicy::No),
        1 => Just(RestartPolicy::OnFailure),
        1 => Just(RestartPolicy::Always),
    ];
    (restart, prop::bool::weighted(0.2), prop::bool::weighted(0.2), any::<bool>(), any::<bool>()).prop_map(
        |(restart, never_pause, no_hibernate, leases_only, mortal)| Policy {
            restart,
            never_pause,
            no_hibernate,
            idle: if leases_only { IdlePolicy::LeasesOnly } else { IdlePolicy::Default },
            max_lifetime: mortal.then_some(Duration::from_secs(3600)),
            ..Policy::default()
        },
    )
}

#[derive(Debug, Clone, PartialEq)]
enum Work {
    Launch(VmId),
    Session { vm: VmId, booted: bool },
    Pause(VmId),
    Resume(VmId),
    Hibernate(VmId),
    Stop(VmId),
    CleanUp(VmId),
    Remove,
}

struct World {
    state: State,
    work: Vec<Work>,
    alive: Option<VmId>,
    used: HashSet<VmId>,
    next_vm: u64,
    next_request: RequestId,
    answers: HashMap<RequestId, Option<Result<(), Denied>>>,
    exits: HashMap<VmId, u32>,
    /// What the memory on disk is worth.
    saved: bool,
    timers: BTreeSet<Timer>,
    uses: Vec<Use>,
}

impl World {
    fn new(policy: &Policy) -> Self {
        let vm = VmId::from_random(0);
        let defaults =
            Defaults { pause_after: Duration::from_secs(60), hibernate_after: Duration::from_secs(300) };
        let (state, effects) = created(Rules::new(policy, &defaults), vm.clone());
        let mut world = World {
            state,
            work: Vec::new(),
            alive: None,
            used: HashSet::new(),
            next_vm: 1,
            next_request: 0,
            answers: HashMap::new(),
            exits: HashMap::new(),
            saved: false,
            timers: BTreeSet::new(),
            uses: Vec::new(),
        };
        world.perform(effects);
        world
    }

    fn fresh(&mut self) -> VmId {
        self.next_vm += 1;
        VmId::from_random(self.next_vm)
    }

    fn ask(&mut self, kind: u8, registry_fails: bool) -> RequestId {
        let next = self.fresh();
        let ask = match kind {
            0 => Ask::Start { next },
            1 => Ask::Stop,
            2 => Ask::Restart { next },
            3 => Ask::Disable,
            4 => Ask::Pause,
            5 => Ask::Resume { next },
            6 => Ask::Wake { next, purpose: Use::Connection },
            7 => Ask::Delete,
            8 => Ask::Hibernate,
            9 => Ask::Evict,
            10 => Ask::Attach,
            11 => Ask::Lease { ttl: Duration::from_secs(9) },
            12 => Ask::Parent { up: false },
            13 => Ask::Parent { up: true },
            _ => Ask::Release,
        };
        let id = self.next_request;
        self.next_request += 1;
        self.answers.insert(id, None);
        match step(&self.state, Event::Request { id, ask }) {
            Err(denied) => self.answer(id, Err(denied)),
            Ok((_, effects)) if registry_fails && effects.first() == Some(&Effect::Record) => {
                self.answer(id, Err(Denied::Registry(String::new())));
            }
            Ok((state, effects)) => {
                if kind == 9 && effects.iter().any(|e| matches!(e, Effect::Hibernate { .. })) {
                    assert!(self.uses.is_empty(), "somebody who is in use is evicted");
                }
                self.state = state;
                self.perform(effects);
            }
        }
        id
    }

    fn happen(&mut self, event: Event) {
        let (state, effects) = step(&self.state, event).unwrap();
        assert_ne!(effects.first(), Some(&Effect::Record), "only requests may fail");
        self.state = state;
        self.perform(effects);
    }

    fn answer(&mut self, id: RequestId, outcome: Result<(), Denied>) {
        let before = self.answers.insert(id, Some(outcome));
        assert_eq!(before, Some(None), "request {id} is answered twice or was never made");
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for (index, effect) in effects.into_iter().enumerate() {
            match effect {
                Effect::Record => assert_eq!(index, 0),
                Effect::RecordEnd(_) => assert_eq!(self.alive, None),
                Effect::Log(SystemMessage::Info(line)) if line.starts_with("process exited") => {
                    let vm = self.state.vm().cloned().unwrap();
                    let count = self.exits.entry(vm).or_default();
                    *count += 1;
                    assert_eq!(*count, 1, "the end of a command is reported once");
                }
                Effect::Log(_) => {}
                Effect::Answer { id, outcome, grant } => {
                    assert!(grant.is_none() || outcome.is_ok());
                    self.uses.extend(grant);
                    self.answer(id, outcome);
                }
                Effect::Arm { timer, .. } => drop(self.timers.insert(timer)),
                Effect::Disarm { timer } => {
                    assert!(self.timers.remove(&timer), "{timer:?} does not run");
                }
                Effect::Discard => {
                    assert_eq!(self.alive, None, "the memory of a live VM is discarded");
                    self.saved = false;
                }
                Effect::Launch { vm, fresh } => {
                    assert_eq!(self.saved, !fresh, "memory is used with a disk that went on without it");
                    assert_eq!(self.alive, None, "two VMs");
                    assert!(
                        self.work
                            .iter()
                            .all(|w| !matches!(w, Work::Launch(_) | Work::CleanUp(_) | Work::Remove))
                    );
                    assert!(
                        self.state.enabled && !self.state.closing && !self.state.orphaned,
                        "a boot while it is forbidden"
                    );
                    assert!(self.used.insert(vm.clone()), "a VM id is used twice");
                    self.work.push(Work::Launch(vm));
                }
                Effect::Attach { .. } => unreachable!("nothing was adopted"),
                Effect::Pause { vm } => self.on_worker(vm, Work::Pause),
                Effect::Resume { vm } => self.on_worker(vm, Work::Resume),
                Effect::Hibernate { vm } => {
                    assert_eq!(self.state.rules.may_hibernate(), Ok(()), "memory that must not be on disk");
                    self.on_worker(vm, Work::Hibernate);
                }
                Effect::Stop { vm, .. } => self.on_worker(vm, Work::Stop),
                Effect::CleanUp { vm } => {
                    assert_eq!(self.alive, None, "the directory of a live VM is removed");
                    self.work.push(Work::CleanUp(vm));
                }
                Effect::Remove => {
                    assert_eq!(self.alive, None, "the files of a live VM are removed");
                    self.work.push(Work::Remove);
                }
            }
        }
    }

    fn on_worker(&mut self, vm: VmId, work: fn(VmId) -> Work) {
        assert_eq!(self.alive.as_ref(), Some(&vm), "there is no such worker");
        self.work.push(work(vm));
    }

    fn die(&mut self, reason: u8) {
        if let Some(vm) = self.alive.take() {
            let reason = [
                ExitReason::Stopped,
                ExitReason::BootFailed,
                ExitReason::GuestShutdown,
                ExitReason::VmmDied,
                ExitReason::LinkViolation,
            ][usize::from(reason)];
            self.happen(Event::Gone { vm, exited: Exited { reason, message: "gone".to_owned() } });
        }
    }

    fn progress(&mut self, which: usize, good: bool, variant: u8) {
        if self.work.is_empty() {
            return;
        }
        let work = self.work.remove(which % self.work.len());
        let outcome = if good { Ok(()) } else { Err("no".to_owned()) };
        let failure = BootProblem {
            message: "no".to_owned(),
            details: vec!["console: why".to_owned()],
            no_memory: variant == 2,
        };
        match work {
            Work::Launch(vm) if good => {
                self.saved = false;
                self.alive = Some(vm.clone());
                self.work.push(Work::Session { vm: vm.clone(), booted: false });
                self.happen(Event::Launched { vm });
            }
            Work::Launch(vm) => self.happen(Event::BootFailed { vm, failure }),
            Work::Session { vm, booted: false } if good => {
                self.work.push(Work::Session { vm: vm.clone(), booted: true });
                self.happen(Event::Booted { vm });
            }
            Work::Session { vm, booted: true } if good => {
                let ran = Some(Duration::from_secs(u64::from(variant) * 6));
                self.happen(Event::ProcessExited { vm, status: ExitStatus::exited(variant % 2), ran });
            }
            Work::Session { vm, booted } => self.happen(match variant {
                0 if !booted => {
                    Event::BootFailed { vm, failure: BootProblem { no_memory: false, ..failure } }
                }
                1 if !booted => {
                    let failure = StartFailure { kind: StartFailureKind::NotFound, message: "no".to_owned() };
                    Event::StartFailed { vm, failure }
                }
                _ => Event::GuestFault { vm, message: "garbage".to_owned() },
            }),
            Work::Pause(vm) => self.happen(Event::PauseDone { vm, outcome }),
            Work::Resume(vm) => self.happen(Event::ResumeDone { vm, outcome }),
            Work::Hibernate(vm) if self.alive.as_ref() != Some(&vm) => {}
            Work::Hibernate(vm) if good => {
                self.alive = None;
                self.saved = true;
                let exited = Exited { reason: ExitReason::Hibernated, message: "saved".to_owned() };
                self.happen(Event::Gone { vm, exited });
            }
            Work::Hibernate(vm) => self.happen(Event::HibernateFailed { vm, message: "full".to_owned() }),
            Work::Stop(vm) if good => {
                if self.alive.as_ref() == Some(&vm) {
                    self.die(0);
                }
            }
            Work::Stop(vm) => {
                if self.alive.as_ref() == Some(&vm) {
                    self.happen(Event::StopStuck { vm, message: "no".to_owned() });
                }
            }
            Work::CleanUp(vm) => self.happen(Event::Cleaned { vm }),
            Work::Remove => self.happen(Event::Removed(outcome.map_err(Denied::Files))),
        }
    }

    /// An event of a VM that is not the current one.
    fn late(&mut self, kind: u8) {
        let vm = VmId::from_random(u64::MAX);
        let event = match kind {
            0 => Event::Launched { vm },
            1 => Event::Booted { vm },
            2 => Event::BootFailed {
                vm,
                failure: BootProblem { message: String::new(), details: Vec::new(), no_memory: false },
            },
            3 => Event::ProcessExited { vm, status: ExitStatus::exited(0), ran: None },
            4 => Event::GuestFault { vm, message: String::new() },
            5 => Event::PauseDone { vm, outcome: Ok(()) },
            6 => Event::ResumeDone { vm, outcome: Ok(()) },
            7 => Event::Gone { vm, exited: Exited { reason: ExitReason::VmmDied, message: String::new() } },
            8 => Event::StopStuck { vm, message: String::new() },
            9 => Event::StartFailed {
                vm,
                failure: StartFailure { kind: StartFailureKind::Invalid, message: String::new() },
            },
            10 => Event::HibernateFailed { vm, message: String::new() },
            11 => Event::Activity { vm },
            _ => Event::Cleaned { vm },
        };
        assert_eq!(
            step(&self.state, event),
            Ok((self.state.clone(), Vec::new())),
            "a late event changes nothing"
        );
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Ask { kind, registry_fails } => {
                self.ask(kind, registry_fails);
            }
            Op::Progress { which, good, variant } => self.progress(which, good, variant),
            Op::Die { reason } => self.die(reason),
            Op::Late { kind } => self.late(kind),
            Op::Shutdown { save } => self.happen(Event::Shutdown { grace: Duration::from_secs(1), save }),
            Op::Elapse { which } => self.elapse(which),
            Op::EndUse { which } => self.end_use(which),
            Op::Activity => {
                if let Some(vm) = self.alive.clone() {
                    self.happen(Event::Activity { vm });
                }
            }
        }
        assert_eq!(self.timers, self.state.timers);
        let users = self.uses.iter().fold(Users::default(), |mut users, kind| {
            *users.count(*kind) += 1;
            users
        });
        assert_eq!(self.state.users, users, "uses are counted");
        let hibernated = self.state.shown() == InstanceState::Hibernated;
        assert!(!hibernated || (self.saved && self.alive.is_none()), "hibernated without memory");
        if matches!(self.state.phase, Phase::Stopped { .. }) {
            assert_eq!(hibernated, self.saved, "memory that nobody will use is kept");
        }
        if let Some(vm) = &self.alive {
            assert_eq!(self.state.vm(), Some(vm), "a VM is forgotten");
        }
        if let Phase::Pausing { vm } | Phase::Paused { vm } | Phase::Resuming { vm } = &self.state.phase {
            assert!(self.used.contains(vm));
        }
    }

    fn elapse(&mut self, which: usize) {
        let Some(timer) = self.timers.iter().nth(which % self.timers.len().max(1)).copied() else { return };
        self.timers.remove(&timer);
        let next = self.fresh();
        let (state, effects) = step(&self.state, Event::Elapsed { timer, next }).unwrap();
        if effects.iter().any(|e| matches!(e, Effect::Pause { .. } | Effect::Hibernate { .. })) {
            assert!(self.uses.is_empty() && !self.state.leased, "idleness of somebody who is in use");
        }
        self.state = state;
        self.perform(effects);
    }

    fn end_use(&mut self, which: usize) {
        if !self.uses.is_empty() {
            let kind = self.uses.remove(which % self.uses.len());
            self.happen(Event::UseEnded(kind));
        }
    }

    /// Lets everything that is under way succeed; commands go on.
    fn settle(&mut self) {
        let finishes = |w: &Work| !matches!(w, Work::Session { booted: true, .. });
        for _ in 0..1000 {
            match self.work.iter().position(finishes) {
                Some(which) => self.progress(which, true, 0),
                // Whoever waits for a restart gets it.
                None if self.timers.contains(&Timer::Restart) => {
                    let which = self.timers.iter().position(|t| *t == Timer::Restart).unwrap();
                    self.elapse(which);
                }
                None => return,
            }
        }
        panic!("it never comes to rest");
    }

    fn assert_all_answered(&self) {
        assert!(self.state.waiting.is_empty(), "{:?}", self.state);
        let open: Vec<_> = self.answers.iter().filter(|(_, answer)| answer.is_none()).collect();
        assert!(open.is_empty(), "never answered: {open:?} in {:?}", self.state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_life_keeps_the_invariants_and_answers_everybody(policy in policy(), ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World::new(&policy);
        for op in ops {
            world.apply(op);
        }
        world.settle();
        world.assert_all_answered();
        let at_rest = matches!(
            world.state.phase,
            Phase::Stopped { .. } | Phase::Running { .. } | Phase::Paused { .. } | Phase::Deleted
        );
        prop_assert!(at_rest, "{:?}", world.state);
    }

    #[test]
    fn delete_always_ends_with_nothing_left(policy in policy(), ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new(&policy);
        for op in ops {
            world.apply(op);
        }
        let id = world.ask(7, false);
        world.settle();
        world.assert_all_answered();
        prop_assert_eq!(&world.state.phase, &Phase::Deleted);
        prop_assert_eq!(&world.alive, &None);
        prop_assert!(matches!(world.answers[&id], Some(Ok(()) | Err(Denied::Deleted))));
    }

    #[test]
    fn disable_always_ends_without_a_vm(policy in policy(), ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new(&policy);
        for op in ops {
            world.apply(op);
        }
        world.ask(3, false);
        world.settle();
        world.assert_all_answered();
        prop_assert_eq!(&world.alive, &None);
        let wake = world.ask(6, false);
        prop_assert!(matches!(world.answers[&wake], Some(Err(Denied::Disabled | Denied::Deleted))));
    }

    #[test]
    fn shutdown_always_comes_to_an_end(
        policy in policy(),
        save in any::<bool>(),
        before in prop::collection::vec(op(), 0..60),
        after in prop::collection::vec(op(), 0..20),
    ) {
        let mut world = World::new(&policy);
        for op in before {
            world.apply(op);
        }
        world.apply(Op::Shutdown { save });
        for op in after {
            world.apply(op);
        }
        world.settle();
        world.assert_all_answered();
        prop_assert!(world.state.is_final(), "{:?}", world.state);
        prop_assert_eq!(&world.alive, &None);
    }
}
