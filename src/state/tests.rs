use super::format::sealed;
use super::store::Store;
use super::*;
use crate::app::App;
use crate::config;
use crate::scheduler::{BackendReport, BackendSnapshot, Event, Experience, Life, ProgramKey, ProgramSnapshot};
use crate::units::Tokens;
use proptest::collection::vec;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use xxhash_rust::xxh3::xxh3_64;

/// Where nobody listens.
const URL: &str = "http://127.0.0.1:1";

fn program(number: u64) -> ProgramSnapshot {
    ProgramSnapshot {
        number,
        key: ProgramKey { tenant: "team".into(), id: format!("p{number}").into() },
        class: 7,
        context: Tokens(4_100),
        last_prompt: Tokens(4_000),
        last_bytes: 16_000,
        home: Some(BackendId(0)),
        leased: true,
        running: false,
        age_ms: 60_000,
        idle_ms: 1_000,
        steps: 3,
    }
}

fn backend(prefixes: Vec<(u64, Tokens, u64)>) -> BackendSnapshot {
    let life = Some(Life { started_ms: Some(1_700_000_000_000), prompt_tokens: 12_345 });
    BackendSnapshot { backend: BackendId(0), life, rate: Some(9_000.0), feedback: (0.97, 0.01), prefixes }
}

fn sample() -> Snapshot {
    let experience = Experience {
        output: Some(200.5),
        bytes_per_token: Some(4.0),
        gaps_ms: vec![900, 1_100],
        lives: vec![(40, 30.0, 2.0, 8_000.0)],
        grown: (1_000.0, 10.0),
        classes: vec![(7, Tokens(320), 2)],
    };
    let memory = SchedulerSnapshot {
        experience,
        backends: vec![backend(vec![(0, Tokens(4_000), 5)])],
        programs: vec![program(0), program(1)],
    };
    let backends = vec![(BackendId(0), "http://gpu1:8000".to_owned())];
    Snapshot {
        taken_ms: 1_700_000_100_000,
        pools: vec![PoolSnapshot { name: "glm".to_owned(), backends, discovered: Vec::new(), memory }],
    }
}

fn any_program() -> impl Strategy<Value = ProgramSnapshot> {
    let home = proptest::option::of((0..2_u32).prop_map(BackendId));
    let names = (".{0,20}", ".{0,40}");
    let numbers = any::<[u64; 8]>();
    (names, numbers, home, any::<(bool, bool)>()).prop_map(|((tenant, id), n, home, (leased, running))| {
        let key = ProgramKey { tenant: tenant.into(), id: id.into() };
        let (context, last_prompt) = (Tokens(n[2]), Tokens(n[3]));
        let (number, class, last_bytes, age_ms, idle_ms, steps) = (n[0], n[1], n[4], n[5], n[6], n[7]);
        ProgramSnapshot {
            number,
            key,
            class,
            context,
            last_prompt,
            last_bytes,
            home,
            leased,
            running,
            age_ms,
            idle_ms,
            steps,
        }
    })
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let prefixes = vec(any::<(u64, u64, u64)>().prop_map(|(n, tokens, ms)| (n, Tokens(tokens), ms)), 0..5);
    let numbers = vec(any::<u64>(), 0..9);
    let pool = (".{0,9}", vec(any_program(), 0..9), prefixes, numbers, any::<(u32, f32, f32, bool)>()).prop_map(
        |(name, programs, prefixes, numbers, (told, tokens, seconds, known))| {
            let experience = Experience {
                gaps_ms: numbers.clone(),
                lives: numbers.iter().map(|&n| (n as u16, n as f64, f64::from(told), n as f64)).collect(),
                classes: numbers.iter().map(|&n| (n, Tokens(n), told)).collect(),
                grown: (tokens.into(), seconds.into()),
                ..Experience::default()
            };
            let mut backend = backend(prefixes);
            backend.life = backend.life.filter(|_| known);
            let memory = SchedulerSnapshot { experience, backends: vec![backend], programs };
            PoolSnapshot { name, backends: vec![(BackendId(0), URL.to_owned())], discovered: Vec::new(), memory }
        },
    );
    (any::<u64>(), vec(pool, 0..4)).prop_map(|(taken_ms, pools)| Snapshot { taken_ms, pools })
}

#[test]
fn a_file_cut_short_anywhere_is_known_for_damaged() {
    let bytes = encode(&sample());
    assert_eq!(decode(&bytes), Ok(sample()));
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "{end}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(decode(&longer), Err(Damage::Length { .. })));
}

#[test]
fn one_bit_changed_anywhere_is_known_for_damage() {
    let bytes = encode(&sample());
    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(decode(&bytes).is_err(), "bit {at}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    let good = encode(&sample());
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes).unwrap_err()
    };
    assert_eq!(decode(b""), Err(Damage::Foreign));
    assert_eq!(with(0, b'X'), Damage::Foreign);
    assert_eq!(with(8, 9), Damage::Version(9));
    assert_eq!(with(good.len() - 1, 0xff), Damage::Checksum);
    let hollow = sealed([&[0; 28][..], &[0xff; 20]].concat());
    assert!(matches!(decode(&hollow), Err(Damage::Content(_))));
    let trailing = sealed([&good[..], b"x"].concat());
    assert_eq!(decode(&trailing), Err(Damage::Content("1 bytes are left over".to_owned())));
}

/// A change of the layout must come with a new version, or an old file would be read as nonsense.
#[test]
fn the_layout_of_this_version_stays_as_it_is() {
    let bytes = encode(&sample());
    assert_eq!((bytes.len(), xxh3_64(&bytes)), (224, 2_033_566_158_316_128_151));
}

#[test]
fn a_program_takes_little_room() {
    let mut snapshot = sample();
    let few = encode(&snapshot).len();
    snapshot.pools[0].memory.programs.extend((2..1_002).map(program));
    assert!(encode(&snapshot).len() - few < 50_000);
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(snapshot in any_snapshot()) {
        prop_assert_eq!(decode(&encode(&snapshot)), Ok(snapshot));
    }

    #[test]
    fn no_bytes_make_it_panic(body in vec(any::<u8>(), 0..300), sealed_well in any::<bool>()) {
        let bytes = [&[0; 28][..], &body].concat();
        let _ = decode(&if sealed_well { sealed(bytes) } else { body });
    }

    #[test]
    fn no_well_sealed_change_makes_it_panic(snapshot in any_snapshot(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&snapshot);
        let at = 28 + at.index(bytes.len() - 28);
        bytes[at] = byte;
        let _ = decode(&sealed(bytes));
    }

    #[test]
    fn whatever_is_read_is_taken_up_into_a_sound_ledger(snapshot in any_snapshot()) {
        let app = app();
        let pools = snapshot.pools.into_iter().map(|pool| PoolSnapshot { name: String::new(), ..pool });
        let snapshot = Snapshot { pools: pools.take(1).collect(), ..snapshot };
        restore(&encode(&snapshot), &app).unwrap();
        let backend = app.fleet.statuses()[0].backend.id;
        let report = BackendReport { capacity: Some(Tokens(1 << 41)), ..BackendReport::default() };
        app.gate.tell(PoolId(0), Event::Report { backend, report });
        app.gate.tell(PoolId(0), Event::BackendUp(backend));
        app.gate.tell(PoolId(0), Event::Tick);
        prop_assert_eq!(app.gate.check(), Ok(()));
    }
}

fn restore(bytes: &[u8], app: &App) -> Result<Restored, Damage> {
    Ok(decode(bytes)?.restore(&app.gate, &app.fleet))
}

fn capture(app: &App) -> Snapshot {
    Snapshot::take(&app.gate, &app.fleet)
}

/// One pool without a name, with one backend that nobody looks after.
fn app() -> App {
    let backends = vec![crate::config::Backend::at(URL).unwrap()];
    let config = crate::config::Config {
        models: vec![crate::config::Pool::unnamed(backends)],
        ..crate::config::Config::default()
    };
    App::new(config.into()).unwrap()
}

#[test]
fn pools_are_found_by_name_and_backends_by_url() {
    let app = app();
    let mut snapshot = sample();
    assert_eq!(restore(&encode(&snapshot), &app).unwrap().programs, 0, "there is no pool of this name");
    snapshot.pools[0].name.clear();
    let ids = [(BackendId(3), "http://gpu1:8000".to_owned()), (BackendId(9), URL.to_owned())];
    snapshot.pools[0].backends = ids.to_vec();
    snapshot.pools[0].memory.programs[0].home = Some(BackendId(3));
    snapshot.pools[0].memory.programs[1].home = Some(BackendId(9));
    assert_eq!(restore(&encode(&snapshot), &app).unwrap().programs, 2);
    let here = app.fleet.statuses()[0].backend.id;
    let homes: Vec<_> = app.gate.programs().into_iter().map(|(_, view)| view.backend).collect();
    assert_eq!(homes, [None, Some(here)]);
    let again = capture(&app);
    assert_eq!(again.pools[0].memory.programs.len(), 2);
    assert_eq!(again.pools[0].backends, [(here, URL.to_owned())]);
}

#[test]
fn a_clock_that_was_set_back_since_makes_no_program_older() {
    let app = app();
    let mut snapshot = sample();
    snapshot.pools[0].name.clear();
    snapshot.taken_ms = now_ms() + 365 * 24 * 3_600_000;
    let restored = restore(&encode(&snapshot), &app).unwrap();
    assert_eq!(restored, Restored { programs: 2, age: Duration::ZERO });
    app.gate.tell(PoolId(0), Event::Tick);
    assert_eq!(app.gate.programs().len(), 2);
}

#[test]
fn a_home_that_only_a_name_server_knows_is_known_at_once() {
    let mut snapshot = sample();
    snapshot.pools[0].name.clear();
    snapshot.pools[0].backends = vec![(BackendId(0), "http://10.0.0.7:8000".to_owned())];
    let homes = |discovery, discovered: &[BackendId]| {
        let snapshot = Snapshot {
            pools: vec![PoolSnapshot { discovered: discovered.to_vec(), ..snapshot.pools[0].clone() }],
            ..snapshot.clone()
        };
        let pool = config::Pool { discovery, ..config::Pool::unnamed(Vec::new()) };
        let app = App::new(config::Config { models: vec![pool], ..config::Config::default() }.into()).unwrap();
        restore(&encode(&snapshot), &app).unwrap();
        assert_eq!(capture(&app).pools[0].discovered.len(), app.fleet.statuses().len());
        app.gate.programs().into_iter().filter(|(_, view)| view.backend.is_some()).count()
    };
    let dns = config::HostPort { host: "vllm.svc".into(), port: 8000 };
    let discovery = config::Discovery { dns, interval: Duration::from_secs(5), api_key: None };
    assert_eq!(homes(Some(discovery.clone()), &[BackendId(0)]), 2);
    assert_eq!(homes(Some(discovery), &[]), 0, "it was the file's, which names it no more");
    assert_eq!(homes(None, &[BackendId(0)]), 0, "discovery is off");
}

// === the file ===

#[test]
fn a_file_is_replaced_whole_and_is_its_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    fs::write(dir.path().join("state.new"), "left by a crash").unwrap();
    let store = Store::open(&file).unwrap();
    assert_eq!(store.read().unwrap(), None);
    for bytes in [&b"one"[..], b"two"] {
        store.write(bytes).unwrap();
        assert_eq!(store.read().unwrap().unwrap(), bytes);
    }
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    let aside = store.set_aside().unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"two");
    assert_eq!(store.read().unwrap(), None);
}

#[test]
fn a_file_that_cannot_be_kept_is_known_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(&dir.path().join("none/state")).unwrap_err();
    assert!(matches!(error, StoreError::Write { .. }), "{error}");
    assert!(error.to_string().contains("nothing can be written in"), "{error}");
}

#[test]
fn a_writer_writes_changes_only_and_none_once_retired() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let app = app();
    let telemetry = std::sync::Arc::clone(&app.telemetry);
    let writer = SnapshotWriter::open(&file, app.gate.clone(), app.fleet.clone(), telemetry).unwrap();
    writer.load();
    writer.save();
    fs::remove_file(&file).expect("the first is written in any case");
    writer.save();
    assert!(!file.exists(), "nothing has changed");
    let mut snapshot = sample();
    snapshot.pools[0].name.clear();
    restore(&encode(&snapshot), &app).unwrap();
    let release = || app.gate.release(&ProgramKey { tenant: "team".into(), id: "p0".into() });
    assert!(release());
    writer.save();
    assert_eq!(decode(&fs::read(&file).unwrap()).unwrap().pools[0].memory.programs.len(), 1);
    fs::remove_file(&file).unwrap();
    writer.retire();
    assert!(app.gate.release(&ProgramKey { tenant: "team".into(), id: "p1".into() }));
    writer.save();
    assert!(!file.exists());
}
