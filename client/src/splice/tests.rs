//! Streams in memory and on loopback.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test]
async fn each_end_is_passed_on_by_itself() {
    let (mut program, mut local) = duplex(64);
    let (mut service, mut far) = duplex(64);
    let both = async {
        program.write_all(b"question").await.unwrap();
        program.shutdown().await.unwrap();
        let mut text = String::new();
        service.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question", "the end has come, and the other direction is open");
        service.write_all(b" answer").await.unwrap();
        service.shutdown().await.unwrap();
        text.clear();
        program.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "early answer");
    };
    let (spliced, ()) = tokio::join!(splice(&mut local, &mut far, b"early"), both);
    spliced.unwrap();
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_through_narrow_places() {
    let (program, mut local) = duplex(1000);
    let (service, mut far) = duplex(70_000);
    let text =
        |seed: usize| (0..3_000_000).map(|at| u8::try_from((at * seed) % 251).unwrap()).collect::<Vec<u8>>();
    let exchange = async |stream: tokio::io::DuplexStream, send: Vec<u8>| {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sending = async {
            writer.write_all(&send).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(reader.read_to_end(&mut received), sending);
        read.unwrap();
        received
    };
    let (spliced, at_program, at_service) = tokio::join!(
        splice(&mut local, &mut far, &[]),
        exchange(program, text(3)),
        exchange(service, text(7)),
    );
    spliced.unwrap();
    assert!(at_program == text(7) && at_service == text(3));
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn a_break_is_no_end_and_names_its_side() {
    for far_breaks in [true, false] {
        let (program, mut local) = pair().await;
        let (service, mut far) = pair().await;
        let (breaks, _stays) = if far_breaks { (service, program) } else { (program, service) };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let broken = splice(&mut local, &mut far, &[]).await.unwrap_err();
        assert_eq!(matches!(broken, Broken::Far(_)), far_breaks, "{broken}");
    }
}
