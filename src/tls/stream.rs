//! A connection that speaks TLS, or does not: one type, so that what serves it exists once.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{AlertDescription, InvalidMessage, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_rustls::{FallibleAccept, TlsAcceptor, server::TlsStream};

use super::{Identity, Refused};

/// A connection. Nothing of TLS is in memory for a plain one.
pub(crate) enum Stream<S> {
    Plain(S),
    Tls(Box<Tls<S>>),
}

/// A connection from the first byte of its handshake on.
pub(crate) struct Tls<S> {
    state: State<S>,
    refused: watch::Sender<Refused>,
}

enum State<S> {
    Handshake(FallibleAccept<S>),
    Open(TlsStream<S>),
    /// Kept, so that it is closed as every other connection is. Nothing is read or said any more.
    Broken(S),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Speaks TLS to whoever is at the other end of `stream`, if that is what `identity` is for.
    pub(crate) fn new(stream: S, identity: Option<&Identity>) -> Self {
        match identity {
            None => Self::Plain(stream),
            Some(identity) => identity.accept(stream),
        }
    }

    pub(super) fn accept(config: Arc<ServerConfig>, refused: watch::Sender<Refused>, stream: S) -> Self {
        let handshake = TlsAcceptor::from(config).accept(stream).into_fallible();
        Self::Tls(Box::new(Tls { state: State::Handshake(handshake), refused }))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tls<S> {
    /// Goes on with the handshake until there is something to read from and write to.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut TlsStream<S>>> {
        if let State::Handshake(handshake) = &mut self.state {
            match ready!(Pin::new(handshake).poll(context)) {
                Ok(stream) => self.state = State::Open(stream),
                Err((error, stream)) => {
                    tracing::debug!(%error, "no TLS");
                    self.state = State::Broken(stream);
                    let refused = why(&error);
                    self.refused.send_if_modified(|known| {
                        let before = *known;
                        known.distrust |= refused.distrust;
                        known.plain |= refused.plain;
                        *known != before
                    });
                }
            }
        }
        Poll::Ready(match &mut self.state {
            State::Open(stream) => Ok(stream),
            State::Handshake(_) | State::Broken(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }

    /// Closes what never became a TLS connection, without a word.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(stream) => Pin::new(stream).poll_shutdown(context),
            State::Broken(stream) => Pin::new(stream).poll_shutdown(context),
            // Who has not even said hello is not waited for.
            State::Handshake(_) => Poll::Ready(Ok(())),
        }
    }
}

/// Returns what a failed handshake says about the client.
fn why(error: &io::Error) -> Refused {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let distrust = matches!(
        error,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
        ))
    );
    let plain = matches!(error, Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)));
    Refused { distrust, plain }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(ready!(tls.poll_open(context))?).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(ready!(tls.poll_open(context))?).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(tls) => Pin::new(ready!(tls.poll_open(context))?).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(_) => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(tls) => Pin::new(ready!(tls.poll_open(context))?).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(tls) => tls.poll_leave(context),
        }
    }
}
