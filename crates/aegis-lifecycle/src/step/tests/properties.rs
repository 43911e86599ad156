//! Random lives: requests, outcomes in any order, failures, late events of earlier VMs. The world below is what
//! a driver and its ports can do at most; it checks what must be true of every effect.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aegis_proto::control::{StartFailure, StartFailureKind};
use aegis_proto::worker::{ExitReason, Exited};
use aegis_types::{ExitStatus, VmId};
use proptest::prelude::*;

use crate::error::Denied;
use crate::ports::SystemMessage;
use crate::step::{Ask, BootProblem, Effect, Event, Phase, RequestId, State, created, step};

#[derive(Debug, Clone)]
enum Op {
    Ask { kind: u8, registry_fails: bool },
    Progress { which: usize, good: bool, variant: u8 },
    Die { reason: u8 },
    Late { kind: u8 },
    Shutdown,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..8u8, prop::bool::weighted(0.1)).prop_map(|(kind, registry_fails)| Op::Ask { kind, registry_fails }),
        12 => (any::<usize>(), prop::bool::weighted(0.75), 0..3u8)
            .prop_map(|(which, good, variant)| Op::Progress { which, good, variant }),
        1 => (0..5u8).prop_map(|reason| Op::Die { reason }),
        2 => (0..11u8).prop_map(|kind| Op::Late { kind }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Work {
    Launch(VmId),
    Session { vm: VmId, booted: bool },
    Pause(VmId),
    Resume(VmId),
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
}

impl World {
    fn new() -> Self {
        let vm = VmId::from_random(0);
        let (state, effects) = created(vm.clone());
        let mut world = World {
            state,
            work: Vec::new(),
            alive: None,
            used: HashSet::new(),
            next_vm: 1,
            next_request: 0,
            answers: HashMap::new(),
            exits: HashMap::new(),
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
            5 => Ask::Resume,
            6 => Ask::Wake { next },
            _ => Ask::Delete,
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
                Effect::Answer { id, outcome } => self.answer(id, outcome),
                Effect::Launch { vm } => {
                    assert_eq!(self.alive, None, "two VMs");
                    assert!(
                        self.work
                            .iter()
                            .all(|w| !matches!(w, Work::Launch(_) | Work::CleanUp(_) | Work::Remove))
                    );
                    assert!(self.state.enabled && !self.state.closing, "a boot while it is forbidden");
                    assert!(self.used.insert(vm.clone()), "a VM id is used twice");
                    self.work.push(Work::Launch(vm));
                }
                Effect::Attach { .. } => unreachable!("nothing was adopted"),
                Effect::Pause { vm } => self.on_worker(vm, Work::Pause),
                Effect::Resume { vm } => self.on_worker(vm, Work::Resume),
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
        let failure = BootProblem { message: "no".to_owned(), details: vec!["console: why".to_owned()] };
        match work {
            Work::Launch(vm) if good => {
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
                self.happen(Event::ProcessExited { vm, status: ExitStatus::exited(variant) });
            }
            Work::Session { vm, booted } => self.happen(match variant {
                0 if !booted => Event::BootFailed { vm, failure },
                1 if !booted => {
                    let failure = StartFailure { kind: StartFailureKind::NotFound, message: "no".to_owned() };
                    Event::StartFailed { vm, failure }
                }
                _ => Event::GuestFault { vm, message: "garbage".to_owned() },
            }),
            Work::Pause(vm) => self.happen(Event::PauseDone { vm, outcome }),
            Work::Resume(vm) => self.happen(Event::ResumeDone { vm, outcome }),
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
            2 => {
                Event::BootFailed { vm, failure: BootProblem { message: String::new(), details: Vec::new() } }
            }
            3 => Event::ProcessExited { vm, status: ExitStatus::exited(0) },
            4 => Event::GuestFault { vm, message: String::new() },
            5 => Event::PauseDone { vm, outcome: Ok(()) },
            6 => Event::ResumeDone { vm, outcome: Ok(()) },
            7 => Event::Gone { vm, exited: Exited { reason: ExitReason::VmmDied, message: String::new() } },
            8 => Event::StopStuck { vm, message: String::new() },
            9 => Event::StartFailed {
                vm,
                failure: StartFailure { kind: StartFailureKind::Invalid, message: String::new() },
            },
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
            Op::Shutdown => self.happen(Event::Shutdown { grace: Duration::from_secs(1) }),
        }
        if let Some(vm) = &self.alive {
            assert_eq!(self.state.vm(), Some(vm), "a VM is forgotten");
        }
        if let Phase::Pausing { vm } | Phase::Paused { vm } | Phase::Resuming { vm } = &self.state.phase {
            assert!(self.used.contains(vm));
        }
    }

    /// Lets everything that is under way succeed; commands go on.
    fn settle(&mut self) {
        let finishes = |w: &Work| !matches!(w, Work::Session { booted: true, .. });
        for _ in 0..1000 {
            match self.work.iter().position(finishes) {
                Some(which) => self.progress(which, true, 0),
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
    fn every_life_keeps_the_invariants_and_answers_everybody(ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World::new();
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
    fn delete_always_ends_with_nothing_left(ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new();
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
    fn disable_always_ends_without_a_vm(ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new();
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
        before in prop::collection::vec(op(), 0..60),
        after in prop::collection::vec(op(), 0..20),
    ) {
        let mut world = World::new();
        for op in before {
            world.apply(op);
        }
        world.apply(Op::Shutdown);
        for op in after {
            world.apply(op);
        }
        world.settle();
        world.assert_all_answered();
        prop_assert!(world.state.is_final(), "{:?}", world.state);
        prop_assert_eq!(&world.alive, &None);
    }
}
