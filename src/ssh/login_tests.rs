//! What a configuration makes of a login, against a server of our own.

use std::sync::Arc;

use crate::ssh::{
    peer::{Door, Person, encrypted_key, key, login, target},
    target::{Authentication, Method, Target},
};

fn with_methods(methods: &[Method], prompts: usize) -> Target {
    let methods = methods.to_vec();
    Target { authentication: Authentication { methods, prompts, ..Authentication::default() }, ..target() }
}

#[tokio::test]
async fn a_passphrase_is_typed_once_for_all_connections_of_a_run() {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("id");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(encrypted_key().as_bytes()).unwrap();
    let mut target = target();
    target.identities.files = vec![path];
    let door = Door { key: Some(key(9).public_key().clone()), ..Door::default() };
    for answers in [&["opensesame"][..], &[]] {
        let person = Person::who_says(answers);
        // As a reconnect does, which has nobody to ask.
        let again = Target { batch: answers.is_empty(), ..target.clone() };
        let (session, _server) = login(door.clone(), &again, Arc::clone(&person)).await;
        session.unwrap();
        assert_eq!(person.heard().matches("passphrase").count(), answers.len());
    }
}

#[tokio::test]
async fn methods_are_tried_in_the_order_that_is_preferred_and_no_others() {
    use Method::{KeyboardInteractive, Password};
    let rounds: Vec<(&[&str], &[&str])> = vec![(&["Code: "], &["123456"])];
    let door = Door { rounds, password: Some("secret"), ..Door::default() };
    let code = "(alice@bastion) Code: ";
    let password = "(alice@bastion) Password: ";
    for (methods, prompts, answers, heard, inside) in [
        (&[KeyboardInteractive, Password][..], 3, &["123456"][..], vec![code], true),
        (&[Password, KeyboardInteractive], 3, &["secret"], vec![password], true),
        (&[Password, KeyboardInteractive], 1, &["wrong", "123456"], vec![password, code], true),
        (&[KeyboardInteractive], 2, &["1", "2", "123456"], vec![code, code], false),
        (&[Password], 0, &["secret"], vec![], false),
        (&[], 3, &["secret"], vec![], false),
    ] {
        let person = Person::who_says(answers);
        let (session, _server) =
            login(door.clone(), &with_methods(methods, prompts), Arc::clone(&person)).await;
        assert_eq!(session.is_ok(), inside, "{methods:?} {prompts}");
        assert_eq!(person.heard(), heard.join("\n"), "{methods:?} {prompts}");
    }
}

#[tokio::test]
async fn a_server_that_goes_on_asking_is_not_answered_for_ever() {
    const TEN: [&str; 10] = ["?"; 10];
    let rounds: Vec<(&[&str], &[&str])> = vec![(&TEN, &TEN); 20];
    let door = Door { rounds, ..Door::default() };
    let person = Person::who_says(&["?"; 500]);
    let target = with_methods(&[Method::KeyboardInteractive], 3);
    let (session, _server) = login(door, &target, Arc::clone(&person)).await;
    assert!(session.is_err());
    assert_eq!(person.heard().lines().count(), super::MOST_QUESTIONS);
}
