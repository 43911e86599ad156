//! Help, misuse, and how errors look.

use insta::assert_snapshot;

use crate::fake::{Fake, Reply, ok, output, script};

#[test]
fn alone_it_shows_its_usage_and_fails() {
    assert_snapshot!(Fake::absent().aegis(&[]), @r"
    exit: 1
    --- stdout
    Runs commands in microVMs on this machine, without root

    Usage: aegis [OPTIONS] [COMMAND]

    Commands:
      up           Start the daemon
      down         Stop the daemon; running instances are hibernated
      status       Show whether the daemon runs
      service      Have the daemon started by the service manager of this user
      doctor       Check the installation and say what to do about problems
      run          Run a command in a new VM, then delete the VM
      instance     Manage instances
      exec         Run a command in an instance
      shell        Open a shell in an instance
      attach       Connect the terminal to the command of an instance
      cp           Copy files between this machine and an instance
      inspect      Show everything about an instance or an image, as JSON
      update       Change memory, disk, CPUs, environment or idle settings of an instance
      logs         Show what an instance has written
      net          Show and change what instances may reach in the network
      image        Manage images
      registry     Manage access to registries of images
      template     Manage templates: booted VMs of which new instances are copies
      workspace    Manage workspaces: directories that instances have at /workspace
      secret       Manage secrets: values that commands get and nobody else sees
      stats        Show what instances cost and how they started
      bench        Measure boots, starts, wakes and density beside a bare VMM
      completions  Print a completion script for a shell
      version      Print the version
      help         Print this message or the help of the given subcommand(s)

    Options:
          --home <DIR>  Home directory of AegisVM [default: $AEGIS_HOME or ~/.aegis]
      -v, --version     Print the version
      -h, --help        Print help

    Exit codes:
      0      success; of `run`, `exec`, `shell` and `attach`: the exit code of the guest's command
      1      error
      2      the command line makes no sense
      124    `--timeout` or `--max-lifetime` passed
      125    the VM did not come up or was lost
      126    the guest cannot execute the command
      127    the guest has no such command
      128+N  ended by signal N: the guest's command, or aegis itself (130 is Ctrl-C)
    ");
}

#[test]
fn help_and_version_are_answers() {
    let fake = Fake::absent();
    for args in [&["--help"], &["-h"], &["help"]] {
        assert_eq!(fake.output(args).status.code(), Some(0), "{args:?}");
    }
    for args in [&["--version"], &["-v"], &["-V"], &["version"]] {
        assert_eq!(fake.aegis(args), "exit: 0\n--- stdout\naegis [VERSION]\n", "{args:?}");
    }
}

#[test]
fn help_of_run() {
    assert_snapshot!(Fake::absent().aegis(&["run", "--help"]), @r"
    exit: 0
    --- stdout
    Run a command in a new VM, then delete the VM

    Usage: aegis run [OPTIONS] [-- <COMMAND>...]

    Arguments:
      [COMMAND]...  Program and arguments; no shell. Without it, with --image or --oci-defaults, the
                    image says what to run

    Options:
          --home <DIR>                  Home directory of AegisVM [default: $AEGIS_HOME or ~/.aegis]
          --name <NAME>                 Name of the instance, unique; also its host name
          --image <IMAGE>               Image: one that is there, or the name of one at a registry, such
                                        as python:3.12-alpine or ghcr.io/team/tools:v1 [default: setting
                                        default_image]
          --pull <POLICY>               Whether its registry is asked first: missing, always or never
                                        [default: setting images.pull]
          --oci-defaults                Use ENTRYPOINT, CMD, WORKDIR and USER of the image where nothing
                                        else is said; COMMAND is what follows the ENTRYPOINT
          --memory <MB>                 Memory in MiB
          --disk <SIZE>                 Size of its disk, such as 10G, or in MiB: more cannot be written
                                        in its guest, the workspace aside. Space of this machine is
                                        taken when it is used [default: the daemon's, 10G]
          --cpus <N>                    Virtual CPUs [alias: --vcpus]
      -e, --env <VARIABLE>              Environment variable of the command: K=V, K=secret.NAME, KEY for
                                        the secret of that name if it is stored, or '*' for all secrets;
                                        may be repeated
          --env-literal <K=V>           The same, whatever the value looks like; may be repeated
          --secret <KEY>                Secret that the command has as a variable: KEY, K=secret.NAME,
                                        or '*' for all; it must be stored; may be repeated
          --secret-file <KEY:FILE>      Secret that the guest has as a file in memory, as
                                        KEY:/run/secrets/NAME; may be repeated
      -i, --interactive                 Open the standard input of the command
      -t, --tty                         Give the command a terminal
      -u, --user <USER[:GROUP]>         User and group of the command in the guest, names or numbers
                                        [default: root]
      -w, --workdir <DIR>               Working directory in the guest
          --workspace <WORKSPACE[:ro]>  What it has at /workspace: the name of a workspace, or a
                                        directory of this machine (a path with a `/`, or one that begins
                                        with `.`); `:ro` at the end keeps it from changing it [default:
                                        a workspace of its own]
          --mount <HOST:GUEST[:ro]>     Directory of this machine that it has somewhere else, as
                                        HOST:GUEST[:ro]; may be repeated
          --expose <PORT>               Port to reach from the host: [PUBLIC:]GUEST[/http|tcp|grpc]; may
                                        be repeated
          --net <POLICY>                What it may reach: public, none, allow:RULE,... or
                                        deny:RULE,...; a rule is NAME, *.NAME, ADDRESS or NETWORK with
                                        an optional :PORT; may be repeated [default: public]
          --host-port <PORT>            Port of this machine's loopback interface that it reaches at
                                        host.aegis.internal; may be repeated
          --pause-after <DURATION>      Pause it after so much idle time [default: setting pause_after]
          --hibernate-after <DURATION>  Hibernate it after so much paused time [default: setting
                                        hibernate_after]
          --never-pause                 Never pause it for being idle
          --no-hibernate                Never write its memory to disk
          --max-lifetime <DURATION>     Stop it so long after its start, whatever it does
          --timeout <DURATION>          End the run after this time, such as 90s or 5m
          --detach-keys <KEYS>          Keys that leave the command of `-it`, which goes on: characters
                                        and ctrl-CHARACTER; '' for none [default: ctrl-p,ctrl-q]
      -h, --help                        Print help
    ");
}

#[test]
fn a_group_without_subcommand_shows_its_usage() {
    assert_snapshot!(Fake::absent().aegis(&["instance"]), @r"
    exit: 1
    --- stdout
    Manage instances

    Usage: aegis instance [OPTIONS] <COMMAND>

    Commands:
      start      Start a new instance, or one that was stopped
      stop       Stop the VM of an instance; it is woken when needed
      restart    Stop an instance and start it again
      list       List instances
      info       Show everything about an instance
      disable    Stop an instance and keep it from being woken
      delete     Delete instances with everything in them
      pause      Halt the CPUs of an instance
      resume     Let a paused instance go on
      hibernate  Save the memory of an instance and end its VM; it goes on from there when it is woken
      wait       Wait until an instance is in a state, or listens on a port
      expose     Make a port of an instance reachable from the host
      unexpose   Undo `expose`
      keepalive  Keep an instance awake for a time, whether it is idle or not
      prune      Delete instances that have been stopped for long
      help       Print this message or the help of the given subcommand(s)

    Options:
          --home <DIR>  Home directory of AegisVM [default: $AEGIS_HOME or ~/.aegis]
      -h, --help        Print help
    ");
}

#[test]
fn unknown_options_are_misuse() {
    assert_snapshot!(Fake::absent().aegis(&["run", "--memroy", "5", "--", "true"]), @r"
    exit: 2
    --- stderr
    error: unexpected argument '--memroy' found

      tip: a similar argument exists: '--memory'
      tip: to pass '--memroy' as a value, use '-- --memroy'

    Usage: aegis run --memory <MB> [-- <COMMAND>...]

    For more information, try '--help'.
    ");
}

#[test]
fn unknown_commands_are_misuse() {
    assert_snapshot!(Fake::absent().aegis(&["instance", "strat"]), @r"
    exit: 2
    --- stderr
    error: unrecognized subcommand 'strat'

      tip: some similar subcommands exist: 'restart', 'start'

    Usage: aegis instance [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
}

#[test]
fn a_command_needs_the_separator() {
    assert_snapshot!(Fake::absent().aegis(&["run", "echo", "hi"]), @r"
    exit: 2
    --- stderr
    error: unexpected argument 'echo' found

    Usage: aegis run [OPTIONS] [-- <COMMAND>...]

    For more information, try '--help'.
    ");
}

#[test]
fn values_are_checked_before_anything_happens() {
    let fake = Fake::absent();
    assert_snapshot!(fake.aegis(&["run", "--env", "K=secret.a b", "--", "x"]), @r"
    exit: 2
    --- stderr
    error: invalid value 'K=secret.a b' for '--env <VARIABLE>': invalid secret name `a b`: use at most 128 letters, digits, `_`, `.` and `-`, and begin with a letter or `_`; `--env-literal` takes any value as it is

    For more information, try '--help'.
    ");
    assert_snapshot!(fake.aegis(&["run", "--memory", "5", "--", "x"]), @r"
    exit: 2
    --- stderr
    error: invalid value '5' for '--memory <MB>': memory in MiB must be between 128 and 1048576, not 5

    For more information, try '--help'.
    ");
    assert_snapshot!(fake.aegis(&["run", "--expose", "80/udp", "--", "x"]), @r"
    exit: 2
    --- stderr
    error: invalid value '80/udp' for '--expose <PORT>': invalid protocol `udp`: it is http, tcp or grpc

    For more information, try '--help'.
    ");
    assert_snapshot!(fake.aegis(&["instance", "start", "--restart", "sometimes", "--", "x"]), @r"
    exit: 2
    --- stderr
    error: invalid value 'sometimes' for '--restart <POLICY>': unknown restart policy `sometimes`: it is no, on-failure or always

    For more information, try '--help'.
    ");
    assert_snapshot!(fake.aegis(&["instance", "wait", "web", "--for", "paused", "--port", "80"]), @r"
    exit: 2
    --- stderr
    error: `--port` makes no sense without `--for port`
    ");
    for args in [
        &["run", "--cpus", "0", "--", "x"][..],
        &["run", "--name", "a b", "--", "x"],
        &["run", "--image", "A", "--", "x"],
        &["run", "--timeout", "0s", "--", "x"],
        &["run", "--workdir", "relative", "--", "x"],
        &["run"],
        &["exec", "web"],
        &["exec", "-u", "a:b:c", "web", "--", "x"],
        &["exec", "-u", "", "web", "--", "x"],
        &["run", "-u", "nobody:", "--", "x"],
        &["attach", "--detach-keys", "ctrl-", "web"],
        &["shell"],
        &["instance", "start", "-t", "web"],
        &["instance", "start"],
        &["instance", "start", "web", "--memory", "512"],
        &["instance", "start", "web", "--", "x"],
        &["instance", "start", "web", "--expose", "80"],
        &["instance", "start", "web", "--restart", "always"],
        &["run", "--expose", "http", "--", "x"],
        &["run", "--pause-after", "5", "--", "x"],
        &["run", "--pause-after", "5s", "--never-pause", "--", "x"],
        &["run", "--hibernate-after", "5s", "--no-hibernate", "--", "x"],
        &["run", "--max-lifetime", "0s", "--", "x"],
        &["run", "--max-lifetime", "99999999d", "--", "x"],
        &["run", "--restart", "always", "--", "x"],
        &["instance", "start", "--idle-policy", "never", "--", "x"],
        &["instance", "expose", "web"],
        &["instance", "expose", "web", "0"],
        &["instance", "unexpose", "web", "8080:80"],
        &["instance", "wait", "web"],
        &["instance", "wait", "web", "--for", "peace"],
        &["instance", "wait", "web", "--for", "running", "--port", "80"],
        &["instance", "keepalive", "web"],
        &["instance", "keepalive", "web", "--ttl", "0s"],
        &["instance", "keepalive", "web", "--ttl", "1m", "--release"],
        &["instance", "keepalive", "web", "--release", "--reason", "x"],
        &["instance", "list", "--stopped", "--hibernated"],
        &["template", "prune", "--older-than", "soon"],
        &["instance", "delete"],
        &["instance", "list", "--running", "--stopped"],
        &["instance", "prune", "--stopped-older-than", "soon"],
        &["logs", "web", "--since", "yesterday"],
        &["logs", "web", "--console", "--follow"],
        &["completions", "tcsh"],
    ] {
        assert_eq!(fake.output(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn without_a_daemon_the_error_says_how_to_start_it() {
    assert_snapshot!(Fake::absent().aegis(&["instance", "list"]), @r"
    exit: 1
    --- stderr
    error: aegisd is not running
      cause: there is no socket at [HOME]/aegisd.sock
      hint: start it with `aegis up`; `aegis doctor` checks the installation
    ");
}

#[test]
fn similar_names_are_offered() {
    let list = r#"[{"id":"inst-1","handle":"web","state":"running","enabled":true,"command":["x"],
        "image_ref":"base","created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}]"#;
    let fake = Fake::start().on("GET /v1/instances", ok(list));
    assert_snapshot!(fake.aegis(&["instance", "info", "wbe"]), @r"
    exit: 1
    --- stderr
    error: no instance named `wbe`
      hint: did you mean `web`?
    ");
    assert_snapshot!(fake.aegis(&["exec", "mail", "--", "true"]), @r"
    exit: 1
    --- stderr
    error: no instance named `mail`
      hint: `aegis instance list` shows all instances
    ");
}

#[test]
fn refusals_show_cause_and_hint() {
    let refusal = r#"{"error":"instance `web` is disabled","code":"disabled","cause":"first\nsecond",
        "hint":"`aegis instance start web` enables it"}"#;
    let fake = Fake::start().on("POST /v1/instances/web/pause", Reply::Json(409, refusal.to_owned()));
    assert_snapshot!(fake.aegis(&["instance", "pause", "web"]), @r"
    exit: 1
    --- stderr
    error: instance `web` is disabled
      cause: first
             second
      hint: `aegis instance start web` enables it
    ");
}

#[test]
fn the_home_can_be_named_on_the_command_line() {
    let fake = Fake::start();
    let other = Fake::absent();
    let text = other.aegis(&["--home", fake.home().to_str().unwrap(), "status"]);
    assert_eq!(text, "exit: 0\n--- stdout\naegis [VERSION]\naegisd: running\nbackend: qemu\n");
    assert!(other.aegis(&["status"]).contains("not running"));
}

#[test]
fn completions_are_made_without_a_home() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Fake::absent().command(&["completions", shell]);
        let output = output(command.env_remove("AEGIS_HOME"));
        assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("instance"));
    }
}

#[test]
fn bench_hands_over_to_its_program() {
    let fake = Fake::absent();
    let program = script(fake.home(), "b", "echo \"$AEGIS_HOME\" \"$@\"; exit 7");
    let mut command = fake.command(&["bench", "boot", "--help"]);
    let output = output(command.env("AEGIS_BENCH", program));
    assert_eq!(fake.render(&output), "exit: 7\n--- stdout\n[HOME] boot --help\n");
    let mut command = fake.command(&["bench"]);
    let missing = fake.home().join("missing");
    assert_eq!(crate::fake::output(command.env("AEGIS_BENCH", missing)).status.code(), Some(1));
}
