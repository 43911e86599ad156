//! Directories of the host in guests.

use std::fs;
use std::path::Path;
use std::process::Command;

use aegis_e2e::{Aegis, Output, finish, wait_for};
use sha2::{Digest as _, Sha256};

const POSIX: &str = include_str!("../../guest/posix.py");
const KEEPER: &str = include_str!("../../guest/keeper.py");
const MANY: &str = include_str!("../../guest/many.py");

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// `aegis run OPTIONS -- COMMAND`.
fn run(aegis: &Aegis, options: &[&str], command: &[&str]) -> Output {
    aegis.aegis(["run"].iter().chain(options).chain(&["--"]).chain(command))
}

fn workspaces(aegis: &Aegis) -> Vec<String> {
    let output = aegis.aegis(["workspace", "list", "--json"]).expect_ok();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    list.iter().map(|workspace| workspace["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn smoke_a_workspace_is_the_same_on_both_sides() {
    let aegis = Aegis::new();
    let dir = scratch();
    fs::create_dir(dir.path().join("code")).unwrap();
    fs::write(dir.path().join("code/from-host"), "host").unwrap();
    // As seen from where the user is.
    let script = "cat from-host && echo guest > from-guest && id -u && stat -c %u from-host";
    let mut command = aegis.command(
        "aegis",
        ["run", "--workspace", "./code", "--workdir", "/workspace", "--", "sh", "-c", script],
    );
    command.current_dir(dir.path());
    assert_eq!(finish(command).expect_ok().out(), "host0\n0\n");
    assert_eq!(fs::read_to_string(dir.path().join("code/from-guest")).unwrap(), "guest\n");
    // Without one it has its own, which goes with it.
    let output = aegis.run_sh("echo x > /workspace/f && chmod 0 /workspace && ls / | grep work").expect_ok();
    assert_eq!((output.out().as_str(), workspaces(&aegis)), ("workspace\n", Vec::<String>::new()));
}

#[test]
fn workspaces_have_names_and_what_is_read_only_stays_as_it_is() {
    let aegis = Aegis::new();
    let dir = scratch();
    fs::write(dir.path().join("f"), "kept").unwrap();
    let (host, mount) = (text(dir.path()), format!("{}:/data:ro", text(dir.path())));
    let options = ["--workspace", "mine", "--mount", &mount];
    aegis.start_with("web", &options, &["sleep", "100000"]);
    let script = "cp /data/f /workspace/copy; for t in 'rm /data/f' 'touch /data/new' 'chmod 700 /data'; do $t 2>&1; done";
    let output = aegis.exec_sh("web", script);
    assert_eq!(output.out().matches("Read-only file system").count(), 3, "{}", output.out());
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "kept");
    let info = aegis.info("web");
    assert!(info["workspace"].as_str().unwrap().ends_with("data/workspaces/mine"));
    assert_eq!(info["mounts"][1]["guest"], "/data");
    aegis.aegis(["workspace", "delete", "mine"]).expect_code(1);
    aegis.instance("delete", "web");
    assert_eq!(workspaces(&aegis), ["mine"], "a named one stays");
    let du = aegis.aegis(["workspace", "du", "mine", "--json"]).expect_ok();
    assert!(du.out().contains("\"entries\": 1"), "{}", du.out());
    // Another instance finds what was there.
    let read = run(&aegis, &["--workspace", "mine:ro"], &["cat", "/workspace/copy"]).expect_ok();
    assert_eq!(read.out(), "kept");
    aegis.aegis(["workspace", "delete", "mine"]).expect_ok();
    assert!(workspaces(&aegis).is_empty());
    for (options, why) in [
        (["--workspace", "/"], "root of the host"),
        (["--workspace", "/etc/passwd"], "not a directory"),
        (["--workspace", aegis.home().to_str().unwrap()], "AegisVM's own files"),
        (["--mount", "/nowhere-at-all:/m"], "/nowhere-at-all"),
        (["--mount", &format!("{host}:/workspace/x")], "hide each other"),
    ] {
        let refused = run(&aegis, &options, &["true"]).expect_code(1);
        assert!(refused.err().contains(why), "{options:?}: {}", refused.err());
    }
}

#[test]
fn it_behaves_like_a_file_system() {
    let aegis = Aegis::new();
    let dir = scratch();
    let output =
        run(&aegis, &["--workspace", &text(dir.path())], &["python3", "-SE", "-c", POSIX, "/workspace/t"]);
    assert_eq!(output.expect_ok().out(), "25 hold\n");
}

#[test]
fn edits_on_the_host_are_seen() {
    let aegis = Aegis::new();
    let dir = scratch();
    fs::write(dir.path().join("f"), "one").unwrap();
    aegis.start_with("web", &["--workspace", &text(dir.path())], &["sleep", "100000"]);
    // Cached, with its absence of others.
    assert_eq!(aegis.exec_sh("web", "cd /workspace; cat f; ls; cat new 2>/dev/null").out(), "onef\n");
    fs::write(dir.path().join("f"), "two").unwrap();
    fs::write(dir.path().join("new"), "new").unwrap();
    // Without a call of the host in between, which might be what makes it look.
    let script = "cd /workspace; for i in $(seq 200); do [ \"$(cat f new 2>/dev/null)\" = twonew ] && exit 0; sleep 0.05; done; exit 1";
    aegis.exec_sh("web", script).expect_ok();
    fs::remove_file(dir.path().join("new")).unwrap();
    let script =
        "cd /workspace; for i in $(seq 200); do [ \"$(ls)\" = f ] && exit 0; sleep 0.05; done; exit 1";
    aegis.exec_sh("web", script).expect_ok();
}

#[test]
fn open_files_and_the_working_directory_outlive_a_rest_and_the_daemon() {
    let aegis = Aegis::new().with_templates();
    let dir = scratch();
    let count = || fs::read_to_string(dir.path().join("count")).unwrap_or_default().parse().unwrap_or(0_u64);
    let answer = |name: &str| {
        fs::write(dir.path().join("ask"), "").unwrap();
        aegis.exec_sh(name, "true").expect_ok();
        wait_for("an answer", || (!dir.path().join("ask").exists()).then_some(()));
        fs::read_to_string(dir.path().join("answer")).unwrap()
    };
    aegis.start_with("keeper", &["--workspace", &text(dir.path())], &["python3", "-SE", "-u", "-c", KEEPER]);
    wait_for("its first file", || (count() > 0).then_some(()));
    assert_eq!(answer("keeper"), "/workspace/inside before");
    for round in 0..2 {
        if round == 1 {
            aegis.kill_daemon();
            aegis.aegis(["up"]).expect_ok();
        }
        // It remembers that this is missing.
        let _ = fs::remove_file(dir.path().join("meanwhile"));
        let is_missing = || aegis.exec_sh("keeper", "cat /workspace/meanwhile").code != Some(0);
        wait_for("it to be gone", || is_missing().then_some(()));
        aegis.instance("hibernate", "keeper");
        let before = count();
        fs::write(dir.path().join("meanwhile"), round.to_string()).unwrap();
        let seen = aegis.exec_sh("keeper", "cat /workspace/meanwhile").expect_ok();
        assert_eq!(seen.out(), round.to_string(), "what was changed while it slept");
        wait_for("it to go on", || (count() > before).then_some(()));
        assert_eq!(answer("keeper"), "/workspace/inside Stale file handle");
    }
    // What somebody moves meanwhile is found again; where a working directory is, once its new name was looked up.
    aegis.instance("hibernate", "keeper");
    let before = count();
    fs::rename(dir.path().join("inside"), dir.path().join("outside")).unwrap();
    let look = "ls /workspace/outside; for process in /proc/[0-9]*; do readlink $process/cwd; done";
    wait_for("the working directory", || {
        aegis.exec_sh("keeper", look).out().contains("/workspace/outside\n").then_some(())
    });
    wait_for("it to go on", || (count() > before + 1).then_some(()));
    let kept = fs::read_to_string(dir.path().join("outside/kept")).unwrap();
    let lines: Vec<u64> = kept.lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<u64> = (1..=lines.len() as u64).collect();
    assert_eq!(lines, expected, "no line is missing or there twice");
    assert!(!aegis.aegis(["logs", "keeper"]).expect_ok().out().contains("booting instead"));
    // A directory that is gone is said, and nothing is lost.
    aegis.instance("hibernate", "keeper");
    let aside = dir.path().with_extension("aside");
    fs::rename(dir.path(), &aside).unwrap();
    let refused = aegis.exec_sh("keeper", "true");
    assert_ne!(refused.code, Some(0));
    assert!(refused.err().contains("cannot mount a directory"), "{}", refused.err());
    fs::rename(&aside, dir.path()).unwrap();
    let before = count();
    aegis.exec_sh("keeper", "true").expect_ok();
    wait_for("it to go on", || (count() > before).then_some(()));
}

#[test]
fn many_files_and_a_large_one_arrive_as_they_are() {
    let aegis = Aegis::new();
    let dir = scratch();
    let mut digest = Sha256::new();
    for directory in 0..100 {
        let path = dir.path().join(format!("tree/d{directory:03}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            let content = format!("{directory} {file}");
            fs::write(path.join(format!("f{file:03}")), &content).unwrap();
            digest.update(&content);
        }
    }
    let output =
        run(&aegis, &["--workspace", &text(dir.path())], &["python3", "-SE", "-c", MANY]).expect_ok();
    let hex = |digest: Sha256| digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: Vec<String> = output.out().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], format!("10000 {}", hex(digest)));
    for at in 0..1500 {
        let path = dir.path().join(format!("made/d{}/f{at}", at / 100));
        assert_eq!(fs::read_to_string(path).unwrap(), at.to_string());
    }
    let large = fs::File::open(dir.path().join("large")).unwrap();
    let mut digest = Sha256::new();
    let mut block = vec![0; 1 << 20];
    for at in (0..1_u64 << 30).step_by((1 << 30) / 16) {
        std::os::unix::fs::FileExt::read_exact_at(&large, &mut block, at).unwrap();
        digest.update(&block);
    }
    assert_eq!(lines[1], hex(digest));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&large.metadata().unwrap());
    assert!(blocks * 512 < 64 << 20, "holes stay holes: {blocks}");
}

/// The host's own programs, on the read-only mount from which they run.
#[test]
fn git_and_npm_work_in_it() {
    let host = |program: &str| Path::new("/usr/bin").join(program).exists();
    if !host("git") && !Path::new("/usr/lib/git-core").exists() {
        return;
    }
    let aegis = Aegis::new();
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@b"];
        let mut command = Command::new("git");
        command.args(identity).args(args).current_dir(&source);
        finish(command).expect_ok();
    };
    git(&["init", "-q"]);
    for round in 0..3 {
        for file in 0..20 {
            fs::write(source.join(format!("f{file}")), format!("{round} {file}")).unwrap();
        }
        git(&["add", "."]);
        git(&["commit", "-qm", "x"]);
    }
    let mut script = "export PATH=/host/bin:$PATH LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu HOME=/root
export GIT_EXEC_PATH=/host/lib/git-core GIT_TEMPLATE_DIR=/host/share/git-core/templates
git config --global --add safe.directory '*'; git config --global user.email a@b; git config --global user.name a
set -e; cd /workspace; git clone -q source copy; cd copy; git checkout -q -b x HEAD~1; echo new > n; git add n
git commit -qm new; git gc -q; git fsck; git status --short; git log --oneline | wc -l\n"
        .to_owned();
    let mut expected = "3\n".to_owned();
    let npm = Path::new("/usr/lib/node_modules/npm/bin/npm-cli.js");
    if host("node") && npm.exists() {
        fs::create_dir(dir.path().join("package")).unwrap();
        fs::write(dir.path().join("package/package.json"), r#"{"name":"p","version":"1.0.0","main":"i.js"}"#)
            .unwrap();
        fs::write(dir.path().join("package/i.js"), "module.exports = 'required'").unwrap();
        script.push_str(
            "mkdir /workspace/app; cd /workspace/app; echo '{\"name\":\"app\",\"version\":\"1.0.0\"}' > package.json
node /host/lib/node_modules/npm/bin/npm-cli.js install --offline --no-audit --no-fund ../package > log 2>&1 || cat log
node -e 'console.log(require(\"p\"))'\n",
        );
        expected.push_str("required\n");
    }
    let options = ["--workspace", &text(dir.path()), "--mount", "/usr:/host:ro"];
    assert_eq!(run(&aegis, &options, &["sh", "-c", &script]).expect_ok().out(), expected);
}

/// The host's pip with the guest's Python.
#[test]
fn pip_installs_in_it() {
    let mut find = Command::new("python3");
    find.args(["-c", "import os, pip; print(os.path.dirname(os.path.dirname(pip.__file__)))"]);
    let found = finish(find);
    if found.code != Some(0) {
        return;
    }
    let aegis = Aegis::new();
    let dir = scratch();
    let wheel = "import zipfile
with zipfile.ZipFile('demo-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('demo/__init__.py', 'X = \"imported\"')
    wheel.writestr('demo-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n')
    wheel.writestr('demo-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    names = ['demo/__init__.py'] + ['demo-1.0.dist-info/' + name for name in ('METADATA', 'WHEEL', 'RECORD')]
    wheel.writestr('demo-1.0.dist-info/RECORD', ''.join(name + ',,\\n' for name in names))";
    let mut make = Command::new("python3");
    make.args(["-c", wheel]).current_dir(dir.path());
    finish(make).expect_ok();
    let script = "cd /workspace
PYTHONPATH=/pip python3 -m pip install -q --no-index --no-cache-dir --target out ./demo-1.0-py3-none-any.whl >log 2>&1 || cat log
PYTHONPATH=out python3 -c 'import demo; print(demo.X)'";
    let options = ["--workspace", &text(dir.path()), "--mount", &format!("{}:/pip:ro", found.out().trim())];
    assert_eq!(run(&aegis, &options, &["sh", "-c", script]).expect_ok().out(), "imported\n");
    assert!(dir.path().join("out/demo/__init__.py").exists());
}
