# What `credential_process` runs: sh SCRIPT DIRECTORY PROFILE PATH [PORT [NAME]]
# Prints the credentials of one role, or says on stderr why there are none. PROFILE and PATH are encoded and need no
# quoting. Without PORT it asks at the socket. With NAME the port speaks TLS, and only who has a certificate for NAME that
# DIRECTORY/ca.pem leads to is given the token. The token goes through builtins and pipes only, never through an argument list.
d=$1
t=
IFS= read -r t < "$d/token-$2"
if [ -z "$t" ]; then
  echo "broker: the tunnel to the laptop is down; processes get credentials again when it is back" >&2
  exit 1
fi
n='
'
if command -v curl >/dev/null 2>&1; then
  if [ -n "$5" ]; then
    set -- "$1" "$2" "$3" "https://$5:$4$3" --resolve "$5:$4:127.0.0.1" --cacert "$d/ca.pem" --capath "$d"
  elif [ -n "$4" ]; then
    set -- "$1" "$2" "$3" "http://127.0.0.1:$4$3"
  else
    set -- "$1" "$2" "$3" "http://broker$3" --unix-socket "$d/s"
  fi
  shift 3
  a=$(printf 'header = "Authorization: %s"\n' "$t" |
    curl -q -sS -m 5 --noproxy '*' -K - -w '\n%{http_code}' "$@") || exit 1
  c=${a##*"$n"}
  a=${a%"$n"*}
elif command -v python3 >/dev/null 2>&1; then
  a=$(printf '%s' "$t" | python3 -I -c 'import socket, sys
d, p = sys.argv[1:3]
h = "broker"
if len(sys.argv) > 3:
    s = socket.create_connection(("127.0.0.1", int(sys.argv[3])), 5)
    h = "127.0.0.1"
    if len(sys.argv) > 4:
        import ssl
        h = sys.argv[4]
        c = ssl.create_default_context(cafile=d + "/ca.pem")
        # X509_V_FLAG_PARTIAL_CHAIN: the file may end before a root.
        c.verify_flags |= 0x80000
        s = c.wrap_socket(s, server_hostname=h)
else:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    s.connect(d + "/s")
s.sendall(("GET " + p + " HTTP/1.1\r\nHost: " + h + "\r\nAuthorization: " + sys.stdin.read() + "\r\n\r\n").encode())
a = b""
while True:
    m = s.recv(65536)
    if not m:
        break
    a += m
h, b = a.split(b"\r\n\r\n", 1)
sys.stdout.write(h.split()[1].decode() + "\n" + b.decode())' "$d" "$3" ${4:+"$4"} ${5:+"$5"}) || exit 1
  c=${a%%"$n"*}
  a=${a#*"$n"}
elif [ -n "$5" ]; then
  echo "broker: neither curl nor python3 is here to speak TLS with the port" >&2
  exit 1
else
  r=$(printf '\r')
  a=$(
    if [ -n "$4" ]; then
      printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: %s\r\n\r\n' "$3" "$t" | nc -w 5 127.0.0.1 "$4"
    else
      printf 'GET %s HTTP/1.1\r\nHost: broker\r\nAuthorization: %s\r\n\r\n' "$3" "$t" | nc -U -w 5 "$d/s"
    fi
  ) || exit 1
  c=${a#* }
  c=${c%% *}
  a=${a#*"$r$n$r$n"}
fi
if [ "$c" = 200 ]; then
  printf '%s\n' "$a"
else
  printf '%s\n' "$a" >&2
  exit 1
fi
