use std::fs;

use notify::event::{DataChange, MetadataKind, RenameMode};

use super::*;

fn texts(cds: &str, rds: &str) -> Texts {
    let of = |(path, text): (&str, &str)| (PathBuf::from(path), text.to_owned());
    [("cds", cds), ("rds", rds)].map(of).into_iter().collect()
}

#[test]
fn what_is_still_being_written_is_not_read() {
    let mut looked = Looked {
        seen: Arc::new(texts("1", "1")),
        unsettled: None,
    };
    let begun = Instant::now();
    let mut look =
        |millis, now: &Texts| looked.look(now.clone(), begun + Duration::from_millis(millis));
    assert_eq!(look(0, &texts("1", "1")), Verdict::Same);
    assert_eq!(look(20, &texts("2", "1")), Verdict::LookAgain);
    // The second file comes between two looks.
    assert_eq!(look(40, &texts("2", "2")), Verdict::LookAgain);
    assert_eq!(look(60, &texts("2", "2")), Verdict::Changed);
    assert_eq!(look(80, &texts("2", "2")), Verdict::Same);
    // What was taken back has not changed.
    assert_eq!(look(100, &texts("3", "2")), Verdict::LookAgain);
    assert_eq!(look(120, &texts("2", "2")), Verdict::Same);
    assert_eq!(look(140, &texts("3", "2")), Verdict::LookAgain);
    assert_eq!(*looked.seen, texts("2", "2"));
}

#[test]
fn what_never_settles_is_read_in_the_end() {
    let mut looked = Looked::default();
    let begun = Instant::now();
    let changed = (0..100_u32).find(|number| {
        let now = texts(&number.to_string(), "1");
        looked.look(now, begun + SETTLE * *number) == Verdict::Changed
    });
    assert_eq!(changed.map(|number| SETTLE * number), Some(LONGEST));
}

#[test]
fn what_happens_to_other_files_is_nothing_to_look_at() {
    let names = Names::default();
    names.lock().expect("a lock").insert("lds.yaml".into());
    let event = |kind, name: &str| {
        let event = notify::Event::new(kind).add_path(Path::new("/etc").join(name));
        may_change(&Ok(event), &names)
    };
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    let touched = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
    let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    assert!(event(written, "lds.yaml") && event(touched, "lds.yaml"));
    assert!(!event(written, "access.log") && !event(touched, "access.log"));
    // A link on the way to the file may be turned.
    assert!(event(renamed, "..data"));
}

#[tokio::test]
async fn a_file_that_comes_is_told_of_once() {
    let here = std::env::temp_dir().join(format!("shunt-followed-{}", std::process::id()));
    fs::create_dir_all(&here).expect("a directory");
    let config = here.join("config.yaml");
    fs::write(&config, "1").expect("written");
    let mut source = ConfigSource::watch(Some(config.clone())).expect("it is watched");
    fs::write(here.join("new"), "2").expect("written");
    fs::rename(here.join("new"), &config).expect("renamed");
    source.changed().await;
    assert_eq!(source.texts().get(&config).map(String::as_str), Some("2"));
    fs::write(&config, "3").expect("written");
    source.changed().await;
    assert_eq!(source.texts().get(&config).map(String::as_str), Some("3"));
    fs::remove_dir_all(&here).expect("removed");
}

#[tokio::test]
async fn another_watched_directory_is_followed() {
    let here = std::env::temp_dir();
    let mut source = ConfigSource::watch(Some(here.join("config.yaml"))).expect("it is watched");
    for watched in ["/", "/usr"] {
        let wanted = shunt_xds::Wanted {
            kind: shunt_xds::Kind::Clusters,
            name: String::new(),
            path: here.join("cds.yaml"),
            watched: Some(PathBuf::from(watched)),
        };
        source.follow_sources(&[Source {
            wanted,
            accepted: None,
            rejected: None,
        }]);
        let expected = [here.clone(), PathBuf::from(watched)];
        assert_eq!(source.directories, expected.into_iter().collect());
    }
}
