//! The manual: whatever `--help` has, and nothing that a formatter complains about.

use crate::support::{PATIENCE, World};

#[test]
fn the_manual_has_every_command_and_option_and_is_good_roff() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let words = |text: &str| -> Vec<String> {
        let options = text.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let named = options.flat_map(|line| {
            line.split([' ', ',', '[', '<'])
                .take_while(|word| word.is_empty() || word.starts_with('-'))
                .map(|word| word.trim_end_matches('.').to_owned())
                .collect::<Vec<_>>()
        });
        named.filter(|word| word.len() > 1).collect()
    };
    let help = world.run(world.broker(&["--help"])).success().stdout();
    let commands: Vec<String> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect();
    assert!(commands.len() > 15 && commands.contains(&"man".to_owned()), "{commands:?}");
    for command in std::iter::once(None).chain(commands.iter().map(Some)) {
        let named: Vec<&str> = command.map(String::as_str).into_iter().collect();
        let help = world.run(world.broker(&[&named[..], &["--help"]].concat())).success().stdout();
        let page = world.run(world.broker(&[&["man"], &named[..]].concat())).success().stdout();
        let mut groff = std::process::Command::new("groff");
        groff.args(["-man", "-Tutf8", "-k", "-ww", "-rLL=400n", "-P-cbou"]);
        let rendered = sandbox::home::run_within(groff, page.as_bytes(), PATIENCE).success();
        assert_eq!(rendered.stderr(), "", "{named:?}");
        let text = rendered.stdout().replace('\u{2010}', "-");
        let options = words(&help);
        assert!(options.len() > 5, "{named:?} {options:?}");
        for option in options {
            assert!(words(&text).contains(&option), "{named:?} {option}\n{text}");
        }
        match command {
            None => assert!(
                commands.iter().all(|command| text.contains(&format!("broker-{command}(1)"))),
                "{text}"
            ),
            Some(command) => assert!(text.contains(&format!("broker-{command} - ")), "{text}"),
        }
        let examples = help.split("Examples").nth(1).unwrap_or_default().lines().skip(1);
        for line in examples.map(str::trim).filter(|line| line.starts_with("broker ")) {
            assert!(text.contains(line), "{named:?} {line}\n{text}");
        }
    }
    let output = world.run(world.broker(&["man", "women"]));
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr().contains("`women` is no command of broker"), "{output}");
}
