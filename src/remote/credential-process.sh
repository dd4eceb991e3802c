# What `credential_process` runs: sh SCRIPT DIRECTORY PROFILE PATH [PORT [NAME]]
# Prints the credentials of one role, or says on stderr why there are none. PROFILE and PATH are encoded and need no
# quoting. It asks at the socket, and at PORT where there is no socket or no program that knows one. With NAME the port
# speaks TLS, and only who has a certificate for NAME that DIRECTORY/ca.pem leads to is given the token. The token goes
# through builtins and pipes only, never through an argument list.
# Where nothing answers, what `--linger` keeps in files counts.
d=$1
q=$2
p=$3
tls=$5
t=
[ ! -r "$d/token-$q" ] || IFS= read -r t < "$d/token-$q"
fail() {
  lying "$d" "$q"
  printf 'broker: %s\n' "$1" >&2
  exit 1
}
[ -n "$t" ] || fail "the tunnel to the laptop is down; processes get credentials again when it is back"
n='
'
r=$(printf '\r')

# Each asks at the port that it is given, else at the socket, and sets c to the status and a to the body. They end with 1
# when there was no answer, with 2 when they know no sockets, or no TLS, and with 3 for a wrong certificate. What they say themselves would reach the terminals
# of programs that pass it on.
with_curl() {
  if [ -n "$1" ] && [ -n "$tls" ]; then
    set -- "https://$tls:$1$p" --resolve "$tls:$1:127.0.0.1" --cacert "$d/ca.pem" --capath "$d"
  elif [ -n "$1" ]; then
    set -- "http://127.0.0.1:$1$p"
  else
    set -- "http://broker$p" --unix-socket "$d/s"
  fi
  a=$(printf 'header = "Authorization: %s"\n' "$t" |
    curl -q -s -m 5 --noproxy '*' -K - -w '\n%{http_code}' "$@" 2>/dev/null)
  case $? in
    (0) ;;
    # An option that it does not know.
    (2) return 2;;
    # What curl has for the ways in which TLS can go wrong.
    (35|51|58|60|77|83|90|91) return 3;;
    (*) return 1;;
  esac
  c=${a##*"$n"}
  a=${a%"$n"*}
}

with_python3() {
  a=$(printf '%s' "$t" | python3 -I -c 'import socket, sys
d, p = sys.argv[1:3]
h = "broker"
x = ()
try:
    if len(sys.argv) > 3:
        s = socket.create_connection(("127.0.0.1", int(sys.argv[3])), 5)
        h = "127.0.0.1"
    else:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(d + "/s")
    if len(sys.argv) > 4:
        import ssl
        x = ssl.SSLError
        h = sys.argv[4]
        c = ssl.create_default_context(cafile=d + "/ca.pem")
        # X509_V_FLAG_PARTIAL_CHAIN: the file may end before a root.
        c.verify_flags |= 0x80000
        s = c.wrap_socket(s, server_hostname=h)
    s.sendall(("GET " + p + " HTTP/1.1\r\nHost: " + h + "\r\nAuthorization: " + sys.stdin.read() + "\r\n\r\n").encode())
    a = b""
    while len(a) < 65536:
        m = s.recv(65536)
        if not m:
            break
        a += m
    h, b = a.split(b"\r\n\r\n", 1)
    sys.stdout.write(h.split()[1].decode() + "\n" + b.decode())
except x:
    sys.exit(3)
except (OSError, ValueError):
    sys.exit(1)' "$d" "$p" ${1:+"$1"} ${1:+${tls:+"$tls"}}) || return
  c=${a%%"$n"*}
  a=${a#*"$n"}
}

with_nc() {
  [ -z "$1" ] || [ -z "$tls" ] || return 2
  h=broker
  [ -z "$1" ] || h=127.0.0.1
  a=$(printf 'GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n\r\n' "$p" "$h" "$t" |
    if [ -n "$1" ]; then
      nc -w 5 127.0.0.1 "$1"
    else
      nc -U -w 5 "$d/s"
    fi 2>/dev/null | {
      IFS= read -r h
      while IFS= read -r l && [ "$l" != "$r" ]; do :; done
      IFS= read -r l
      printf '%s\n%s' "$h" "$l"
    })
  c=${a%%"$n"*}
  a=${a#*"$n"}
  case $c in
    ("HTTP/1.1 "*) c=${c#* }; c=${c%% *};;
    # An option that it does not know looks like a socket where nobody listens.
    (*) c=; [ -n "$1" ] && return 1; return 2;;
  esac
}

# Sets c where a program got an answer, and y to what is wrong where none did.
ask() {
  y=
  for i in curl python3 nc; do
    command -v "$i" >/dev/null 2>&1 || continue
    "with_$i" "$1"
    case $? in
      (0) return;;
      (2) y=${y:+$y }$i;;
      (3) y=untrusted; return;;
      (*) y=down; return;;
    esac
  done
}

c=
y=
if [ -S "$d/s" ]; then
  ask ""
fi
[ -n "$c" ] || [ -z "$4" ] || [ "$y" = down ] || ask "$4"
case $c$y in
  (200*)
    case $a in
      ("{"*"}") printf '%s\n' "$a"; exit;;
    esac
    fail "the answer broke off: the tunnel to the laptop went down meanwhile";;
  ([0-9]*) printf '%s\n' "$a" >&2; exit 1;;
  (down) fail "nothing answers: the tunnel to the laptop is down, or was a moment ago";;
  (untrusted) fail "whoever is at the port has no certificate of ours, and was told nothing";;
  ("")
    [ -S "$d/s" ] || [ -n "$4" ] || fail "the tunnel to the laptop is down; processes get credentials again when it is back"
    fail "there is neither curl nor python3 nor nc in the PATH to fetch credentials with; install curl on this host";;
  (*)
    [ -z "$4" ] || [ -z "$tls" ] || fail "neither curl nor python3 is here to speak TLS with the port; install curl on this host"
    fail "nothing here can ask at a unix socket ($y cannot, or nobody listens); install curl 7.40 or later, or python3";;
esac
