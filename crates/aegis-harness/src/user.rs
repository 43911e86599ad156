//! Users of the guest, from its own files: the harness has no name service, and passwd(5) and group(5) say enough.

use std::path::Path;

use aegis_proto::control::{StartFailure, StartFailureKind};

use crate::sys::{Credentials, Sys};

/// A user who starts a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) credentials: Credentials,
    /// Home directory, `/` for one who is not in passwd(5).
    pub(crate) home: String,
}

/// Entry of passwd(5).
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Finds `USER[:GROUP]`, each a name or a number. A number needs no entry; it is then in group 0, as with Docker. With a group
/// there are no supplementary ones.
///
/// # Errors
/// There is no such user or group.
pub(crate) fn find(sys: &dyn Sys, text: &str) -> Result<User, StartFailure> {
    let read = |path: &str| {
        let bytes = sys.read_file(Path::new(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
    resolve(text, &passwd, &group)
        .map_err(|message| StartFailure { kind: StartFailureKind::Invalid, message })
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = user.parse().ok();
    let mut accounts = passwd.lines().filter_map(account);
    // A name may consist of digits: names come first.
    let found = accounts.clone().find(|account| account.name == user);
    let found = found.or_else(|| accounts.find(|account| Some(account.uid) == number));
    let (uid, own_group, home, name) = match (found, number) {
        (Some(account), _) => (account.uid, account.gid, account.home, Some(account.name)),
        (None, Some(uid)) => (uid, 0, "/", None),
        (None, None) => return Err(format!("there is no user `{user}` in /etc/passwd of the guest")),
    };
    let mut credentials = Credentials { uid, gid: own_group, groups: Vec::new() };
    match wanted_group {
        Some(wanted) => credentials.gid = find_group(wanted, group)?,
        None => credentials.groups = name.map(|name| groups_of(name, group)).unwrap_or_default(),
    }
    if !credentials.groups.contains(&credentials.gid) {
        credentials.groups.insert(0, credentials.gid);
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { credentials, home: home.to_owned() })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    let named = group.lines().filter_map(group_entry).find(|(name, ..)| *name == wanted);
    named
        .map(|(_, gid, _)| gid)
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("there is no group `{wanted}` in /etc/group of the guest"))
}

/// Most groups that a process can be in: NGROUPS_MAX of the kernel.
const GROUPS_MAX: usize = 65_536;

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let with = |(_, gid, members): (&str, u32, &str)| members.split(',').any(|m| m == name).then_some(gid);
    group.lines().filter_map(group_entry).filter_map(with).take(GROUPS_MAX - 1).collect()
}

/// `name:password:uid:gid:comment:home:shell`.
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
}

/// `name:password:gid:member,member`.
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # comment\n\
        broken:x:7\n\
        app:x:1000:1001:App:/home/app:/bin/bash\n\
        bare:x:1002:1002::\n\
        4242:x:77:77::/digits:\n\
        nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\ndocker:x:999:app\napp:x:1001:app\nbad:x:y:app\n";

    fn found(text: &str) -> (u32, u32, Vec<u32>, String) {
        let User { credentials, home } = resolve(text, PASSWD, GROUP).unwrap();
        (credentials.uid, credentials.gid, credentials.groups, home)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(found("app"), (1000, 1001, vec![10, 999, 1001], "/home/app".into()));
        assert_eq!(found("1000"), found("app"));
        assert_eq!(found("root"), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(found("bare"), (1002, 1002, vec![1002], "/".into()));
        assert_eq!(found("4242"), (77, 77, vec![77], "/digits".into()), "a name of digits");
        assert_eq!(found("5000"), (5000, 0, vec![0], "/".into()), "nobody's number");
    }

    #[test]
    fn a_group_takes_the_place_of_all_others() {
        assert_eq!(found("app:docker"), (1000, 999, vec![999], "/home/app".into()));
        assert_eq!(found("app:55"), (1000, 55, vec![55], "/home/app".into()));
        assert_eq!(found("5000:wheel"), (5000, 10, vec![10], "/".into()));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        for (text, name) in [
            ("ghost", "user `ghost`"),
            ("broken", "user `broken`"),
            ("", "user ``"),
            ("app:ghost", "group `ghost`"),
            ("-1", "user `-1`"),
            ("4294967296", "user `4294967296`"),
        ] {
            let why = resolve(text, PASSWD, GROUP).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
    }

    #[test]
    fn files_that_are_no_such_files_find_nobody() {
        assert!(resolve("app", "\0\u{fffd}::::\n:::", ":::").is_err());
        assert_eq!(
            resolve("1", "", "").unwrap().credentials,
            Credentials { uid: 1, gid: 0, groups: vec![0] }
        );
    }
}
