# The helper, for any POSIX sh. `helper.rs` strips comments and blank lines, joins the rest by spaces and
# sends it as one line: every command ends with an explicit `;` (none after `then`, `do`, `in`, `&`).
# Set before it runs: a and b, the halves of the nonce; w, the seconds of silence after which all is removed.
# An answer is `NONCE NUMBER row|ok|no TEXT`; the first has number 0 and carries the facts.
# Secrets only pass through builtins (read, printf), so no argv ever holds one.

exec 2>/dev/null;
set -f;
umask 077;
LC_ALL=C;
export LC_ALL;
cd /;
N="$a$b";
D=;
B=;
K=;
X=;
W=;
G=;
R=0;
n=0;
U=$(id -u);
say() { printf "%s %s %s\n" "$N" "$n" "$*"; };
L=$(printf "\n.");
L=${L%.};

# A line of /proc/net/tcp, split: who connects, to whom, its state, uid and inode. All rows are said in one write, or
# each would be a packet of its own.
row() { i="$i$N $n row $2 $3 $4 $8 ${10}$L"; };

# Removes the empty directory $1, but not where another user could then make one of that name: whoever still has our
# environment would read what lies there. It stays, empty and ours, until the host restarts or `broker clean` comes.
let_go() {
  case $1 in
    (/dev/shm/broker-*|/tmp/broker-*) true;;
    (*) rmdir "$1";;
  esac;
};

# Removes the directory if it is still ours: a later helper of the same user may have taken it over. It goes
# by one rename, and is given back if it changed hands between the look and the rename.
wipe() {
  [ -n "$D" ] || return 0;
  o=;
  IFS= read -r o < "$D/.owner";
  if [ "$o" = "$N" ]; then
    mv "$D" "$D.gone.$$" || return 1;
    o=;
    IFS= read -r o < "$D.gone.$$/.owner";
    if [ "$o" = "$N" ]; then
      rm -rf "$D.gone.$$";
      let_go "$B";
      [ -d "$D.gone.$$" ] && return 1;
    else
      mv "$D.gone.$$" "$D";
    fi;
  fi;
  D=;
  return 0;
};

# The dead-man switch, wound up anew by every heartbeat. Its standard streams are detached, or the channel
# could not close while it sleeps. `$!` in the trap is set in the same step that starts the sleep, so no
# sleep outlives its watchdog; it is KILL, as a child that is not `sleep` yet would forget a TERM. The helper is
# killed first, so that it cannot write after the removal. Our own trap for TERM is away while it starts: a shell
# that has just been forked would forget one that it caught in our place.
arm() {
  v=$W;
  trap - TERM;
  (
    trap "kill -KILL \$!; exit 0" TERM;
    trap "" HUP INT PIPE;
    sleep "$w" &
    wait "$!" && { kill -KILL "$$"; part; };
    exit 0;
  ) </dev/null >/dev/null &
  W=$!;
  trap "wipe; leave 1" TERM;
  [ -z "$v" ] || { kill "$v"; wait "$v"; };
};

# After the removal, not before: if we are killed half-way, the watchdog finishes it.
leave() {
  part;
  [ -z "$K" ] || rm -f "$K";
  release;
  [ -z "$W" ] || kill "$W";
  exit "$1";
};

# Whether $1 is a directory of ours and no symlink; makes it private.
own() {
  set -- "$1" $(ls -ldn "$1");
  case $2 in
    (d*) [ "$4" = "$U" ] && chmod 700 "$1";;
    (*) false;;
  esac;
};

# Whether nobody but root and we can rename what we make in $1, and its name needs no quoting anywhere.
safe() {
  case $1 in
    (*[!A-Za-z0-9/._=-]*) return 1;;
    (*/../*|*/..) return 1;;
    (/*) true;;
    (*) return 1;;
  esac;
  [ -d "$1" ] && [ -w "$1" ] || return 1;
  set -- "$1" $(ls -ldn "$1/.");
  case $4 in
    ("$U"|0) true;;
    (*) return 1;;
  esac;
  case $2 in
    (d????-??-*|d????????[tT]*) return 0;;
  esac;
  return 1;
};

# Makes directory $2 in our own directory $1, empty and marked as ours. What a dead helper left there goes.
take() {
  mkdir "$1";
  own "$1" || return 1;
  t="$1/$2";
  o=;
  [ -d "$t" ] && IFS= read -r o < "$t/.owner";
  if [ "$o" != "$N" ]; then
    if [ -e "$t" ] || [ -h "$t" ]; then
      ! lingers "$t" || kill -USR1 "$i";
      mv "$t" "$t.gone.$$";
    fi;
    set +f;
    rm -rf "$t".gone.*;
    set -f;
    mkdir "$t" || { let_go "$1"; return 1; };
    printf "%s\n" "$N" "$$" > "$t/.owner";
    o=;
    IFS= read -r o < "$t/.owner";
    if [ "$o" != "$N" ]; then
      rm -rf "$t";
      let_go "$1";
      return 1;
    fi;
  fi;
  own "$t" || return 1;
  B=$1;
  D=$t;
};

# The first place that will do for directory $1; its kind is left in e. A usual one is passed over where a socket
# in it would have a longer path than every system takes. Where jobs take our environment to other machines (H), no
# name is used that another user could give to something of theirs there. Where files are to stay when we end (V), those
# places will not do that logind empties when a user's last session ends.
place() {
  S=;
  if [ -n "$V" ] && [ -d /run/systemd/seats ] && [ ! -e "/var/lib/systemd/linger/$(id -un)" ]; then
    S=/tmp;
  fi;
  for e in runtime run ${H:+home} shm tmp made home; do
    case $S$e in
      (/tmpruntime|/tmprun|/tmpshm) continue;;
    esac;
    case $e in
      (runtime) p=$XDG_RUNTIME_DIR;;
      (run) p=/run/user/$U;;
      (shm) p=/dev/shm;;
      (made) fresh "$1" && return 0; continue;;
      (home) at_home "$1" && return 0; continue;;
      (tmp) p=/tmp;;
    esac;
    p=${p%/};
    t=$p/broker-$U/$1/s;
    [ ${#t} -le 103 ] && safe "$p" && take "$p/broker-$U" "$1" && return 0;
  done;
  return 1;
};

# Directory $1 in one of a random name, where another user has ours; in the same one every time.
fresh() {
  for p in ${S:-/dev/shm} /tmp; do
    if safe "$p"; then
      set +f;
      for d in "$p/broker-$U".??????; do
        set -f;
        own "$d" && take "$d" "$1" && return 0;
      done;
      set -f;
      p=$(mktemp -d "$p/broker-$U.XXXXXX") && take "$p" "$1" && return 0;
    fi;
  done;
  return 1;
};

# Directory $1 in the home, which other machines may share.
at_home() {
  p=$HOME/.cache;
  [ -d "$p" ] || mkdir "$p";
  i=;
  IFS= read -r i < /proc/sys/kernel/random/boot_id;
  safe "$p" && safe "$p/" && take "$p/broker-$U-$(uname -n)-${i%%-*}" "$1";
};

# Whether the helper that made directory $1 still runs. Its command line begins with half of its nonce; where
# there is no /proc, a process of that number must do.
alive() {
  o=;
  i=;
  {
    IFS= read -r o;
    IFS= read -r i;
  } < "$1/.owner";
  case $i in
    (""|*[!0-9]*) return 1;;
  esac;
  kill -0 "$i" || return 1;
  [ -r "/proc/$i/cmdline" ] || return 0;
  tr "\000" " " < "/proc/$i/cmdline" | grep -q "a=${o%????????????????}; b=";
};

# What no answer must hold is not told.
tell() {
  case $2 in
    (*[!A-Za-z0-9/._=-]*) say row "$1" "${2%/*}/?";;
    (*) say row "$1" "$2";;
  esac;
};

# Whether it is the turn of one more: after the first c, and m of them, so that neither an answer nor its making grows
# without end. Leaves in j that there are more.
turn() {
  if [ "$c" -gt 0 ]; then
    c=$((c-1));
    return 1;
  fi;
  if [ "$m" = 0 ]; then
    j=more;
    return 1;
  fi;
  m=$((m-1));
};

# Tells of everything in directory $1 if it is one of ours, and removes what no live helper has. With $2 = look it
# only tells; with $2 = force what live ones have goes too.
sweep() {
  set -- "$1" "$2" $(ls -ldn "$1");
  case $3 in
    (d*) [ "$5" = "$U" ] || return 0;;
    (*) return 0;;
  esac;
  e=;
  set +f;
  for t in "$1"/* "$1"/.[!.]*; do
    set -f;
    [ -e "$t" ] || [ -h "$t" ] || continue;
    e=1;
    turn || continue;
    if [ "$2" != force ] && [ ! -h "$t" ] && alive "$t"; then
      tell live "$t";
    elif [ "$2" = look ]; then
      if lingers "$t"; then
        tell lingers "$t";
      else
        tell dead "$t";
      fi;
    else
      ! lingers "$t" || kill -USR1 "$i";
      rm -rf "$t";
      if [ -e "$t" ]; then
        tell stuck "$t";
      else
        tell gone "$t";
      fi;
    fi;
  done;
  set -f;
  if [ "$2" = look ]; then
    case $e$1 in
      (1*|/dev/shm/broker-*|/tmp/broker-*) true;;
      (*) turn && tell dead "$1";;
    esac;
  elif [ -n "$e" ] || turn; then
    rmdir "$1" && [ -z "$e" ] && tell gone "$1";
  fi;
};

# Every place where a helper of ours may ever have made a directory. A home may be shared between hosts: whether
# the helper of another one lives cannot be seen from here.
sweep_all() {
  for p in "$XDG_RUNTIME_DIR" "/run/user/$U" /dev/shm /tmp; do
    p=${p%/};
    [ -n "$p" ] || continue;
    set +f;
    for d in "$p/broker-$U" "$p/broker-$U".??????; do
      set -f;
      sweep "$d" "$1";
    done;
    set -f;
  done;
  s=$(uname -n);
  set +f;
  for d in "$HOME/.cache/broker-$U-"*; do
    set -f;
    [ -d "$d" ] || continue;
    case $1$d in
      (force*|*"/broker-$U-$s-"*) sweep "$d" "$1";;
      (*) turn && tell elsewhere "$d";;
    esac;
  done;
  set -f;
};

# The file of the name $1 in ~/.aws, behind all symlinks; left in f.
meant() {
  f=$HOME/.aws/$1;
  [ -n "$HOME" ] || return 1;
  for i in 1 2 3 4 5 6 7 8; do
    [ -h "$f" ] || return 0;
    i=$(readlink "$f") || return 1;
    case $i in
      (/*) f=$i;;
      (*) f=${f%/*}/$i;;
    esac;
  done;
  return 1;
};

# Whether file f is as it was when its checksum was $1 and its length $2; `-` for a file that was not there.
same() {
  if [ "$1" = - ]; then
    [ ! -e "$f" ] && [ ! -h "$f" ];
  else
    set -- "$1" "$2" $(cksum < "$f");
    [ "$1 $2" = "$3 $4" ];
  fi;
};

# Holds file f against other tunnels, also of another machine that shares the home: two changes at once would undo each
# other. A change takes a few milliseconds, so a lock that stays was left by a helper that was killed.
hold() {
  [ -n "$f" ] && [ -w "${f%/*}" ] || return 0;
  X=${f%/*}/.broker-lock;
  for i in 1 2 3 4 5 6 7; do
    ln -s "$N" "$X" && return 0;
    sleep 0.05;
  done;
  rm -f "$X";
  ln -s "$N" "$X";
};

# Lets go of what hold took.
release() {
  [ -n "$X" ] && [ "$(readlink "$X")" = "$N" ] && rm -f "$X";
  X=;
};

# That there is no file f, and whether there is `~/.aws`.
absent() {
  if [ -d "$HOME/.aws" ]; then
    say ok - file;
  else
    say ok - directory;
  fi;
};

# What killed helpers left of changing the file f.
litter() {
  set +f;
  for i in "$f".broker.*; do
    set -f;
    [ -f "$i" ] || continue;
    kill -0 "${i##*.}" || rm -f "$i";
  done;
  set -f;
  [ -h "${f%/*}/.broker-lock" ] && rm -f "${f%/*}/.broker-lock";
};

# Whether our directory is still what we made: whoever may rename it may put a link there.
is_ours() {
  [ -n "$D" ] && [ ! -h "$D" ] || return 1;
  o=;
  IFS= read -r o < "$D/.owner";
  [ "$o" = "$N" ];
};

# Renames the temporary file to $1 if it has all $3 bytes: a full disk shows here, in every shell.
keep() {
  s=;
  is_ours && s=$(wc -c < "$D/.new");
  set -- "$1" "$2" "$3" $s;
  if [ "$3" = "$4" ] && chmod "$2" "$D/.new" && mv -f "$D/.new" "$D/$1"; then
    say ok;
  else
    is_ours && rm -f "$D/.new";
    say no write;
  fi;
};

# Where to write: the temporary file, or nowhere. The lines have to be read in any case.
temporary() {
  r=/dev/null;
  if is_ours && true > "$D/.new"; then
    r=$D/.new;
  fi;
};

H=;
for i in condor_submit bsub qsub sbatch; do
  command -v "$i" >/dev/null && H=$i;
done;
[ -n "$H" ] || [ ! -d /etc/slurm ] || H=sbatch;
say row uid "$U";
set -- $(uname -sn);
say row system "$1";
say row host "$2";
say row shell "$SHELL";
say row home "$HOME";
i=;
IFS= read -r i < /proc/sys/kernel/random/boot_id;
say row boot "$i";
[ -z "$H" ] || say row scheduler "$H";
i=;
IFS= read -r i < "/proc/$PPID/stat";
set -- ${i##*")"};
say row parent "$PPID" "${20}";
if [ -r /proc/net/tcp ]; then
  say row sockets yes;
else
  say row sockets no;
fi;
for i in curl python3 nc; do
  command -v "$i" >/dev/null && say row fetcher "$i";
done;
set +f;
grep -l accessToken "$HOME/.aws/sso/cache/"*.json | while read -r i; do
  i=${i##*/};
  case $i in
    (*[!A-Za-z0-9._-]*) i=*.json;;
  esac;
  say row cache "$i";
done;
set -f;
[ "$(command -v printf)" = printf ] || say row missing printf;
for i in chmod grep ls mkdir mv rm rmdir sleep sort wc; do
  command -v "$i" >/dev/null || say row missing "$i";
done;
trap "leave 1" HUP INT PIPE;
trap "wipe; leave 1" TERM;
arm;
say ok;

while IFS= read -r l; do
  set -- $l;
  n=$1;
  case $2 in
    (beat) arm; say ok;;
    (dir)
      case $D in
        (*/"$3"|"") true;;
        (*) wipe;;
      esac;
      D=;
      G=;
      V=$4;
      if place "$3"; then
        arm;
        say ok "$e" "$D";
      else
        D=;
        say no place;
      fi;;
    (put)
      temporary;
      while IFS= read -r l; do
        [ "$l" = "$N" ] && break;
        printf "%s\n" "$l";
      done > "$r";
      keep "$3" "$4" "$5";;
    (files)
      c=$3;
      v=;
      x=;
      while [ "$c" -gt 0 ] && IFS= read -r l; do
        c=$((c-1));
        set -- $l;
        v="$v $2";
        x="$x $3 $2";
        r=/dev/null;
        [ -n "$D" ] && true > "$D/$2" && r=$D/$2;
        case $1 in
          (text)
            while IFS= read -r l; do
              [ "$l" = "$N" ] && break;
              printf "%s\n" "$l";
            done > "$r";;
          (*)
            IFS= read -r l;
            printf "%s" "$l" > "$r";
            l=;;
        esac;
      done;
      set -- $([ -n "$D" ] && cd "$D" && wc -c $v);
      case " $*" in
        ("$x"|"$x "*" total") say ok;;
        (*) say no write "$*";;
      esac;;
    (token)
      temporary;
      IFS= read -r l;
      printf "%s" "$l" > "$r";
      l=;
      keep "$3" 600 "$4";;
    (listen)
      if [ -r /proc/net/tcp ]; then
        i="0100007F|0{8}|0{32}|0{24}01000000|0{16}FFFF0000(0100007F|0{8})";
        grep -hE "^ *[0-9]+: ($i):$3 0+:0000 0A " /proc/net/tcp /proc/net/tcp6 | while read -r s l r t q j k u x; do
          say row "$l" "$u";
        done | sort -u;
        say ok;
      else
        say no sockets;
      fi;;
    (who)
      if [ -r /proc/net/tcp ]; then
        f=/proc/net/$3;
        p=$4;
        case $3 in
          (tcp6) s=0000000000000000FFFF0000;;
          (*) s=;;
        esac;
        shift 4;
        i=;
        for l; do
          i="$i${i:+$L} $s$l ${s}0100007F:$p ";
        done;
        i=$(grep -F -e "$i" "$f");
        IFS=$L;
        set -- $i;
        unset IFS;
        i=;
        for l; do
          row $l;
        done;
        printf "%s" "$i$N $n ok$L";
      else
        say no sockets;
      fi;;
    (clean)
      c=$4;
      m=$5;
      j=;
      sweep_all "$3";
      [ "$3" = look ] || { meant config && litter; };
      say ok "$j";;
    (peek)
      if ! meant "$3"; then
        say no read;
      elif [ ! -e "$f" ]; then
        absent;
      elif [ ! -f "$f" ] || [ ! -r "$f" ]; then
        say no read;
      else
        {
          {
            if [ "$3" = config ]; then
              cat "$f";
            else
              sed -e "/^ *[[]/b" -e "s/[=:].*/=/" -e t -e "s/.*//" "$f";
            fi;
          } | od -v -A n -t x1 | tr -d " \n";
          echo;
        } | fold -w 4000 | sed -n "$4,${5}p" | while read -r l; do
          [ -z "$l" ] || say row "$l";
        done;
        say ok $(cksum < "$f");
      fi;;
    (splice)
      r=/dev/null;
      if ! meant "$3"; then
        f=;
      elif [ -e "$f" ]; then
        hold;
        K=$f.broker.$$;
        [ -w "$f" ] && cp -p "$f" "$K" && r=$K;
      elif [ ! -h "$f" ]; then
        K=$f.broker.$$;
        mkdir -p "${f%/*}" && hold && true > "$K" && r=$K;
      fi;
      {
        [ "$6" = 0 ] || dd if="$f" bs="$6" count=1;
        while IFS= read -r l; do
          [ "$l" = "$N" ] && break;
          printf "%s\n" "$l";
        done;
        [ "$7" = "$5" ] || tail -c "+$(($7 + 1))" "$f";
      } > "$r";
      a="no write";
      if [ "$r" = /dev/null ]; then
        true;
      elif ! same "$4" "$5"; then
        a="no changed";
      else
        s=$(wc -c < "$K");
        if [ "$(($s))" = "$(($6 + $8 + $5 - $7))" ] && mv -f "$K" "$f"; then
          a="ok $(cksum < "$f")";
        fi;
      fi;
      [ -z "$K" ] || rm -f "$K";
      K=;
      release;
      say $a;;
    (discard)
      meant "$3" || f=;
      hold;
      if [ -z "$f" ] || ! same "$4" "$5"; then
        release;
        say no changed;
      elif rm -f "$f"; then
        release;
        [ "$6" = directory ] && rmdir "$HOME/.aws";
        absent;
      else
        release;
        say no write;
      fi;;
    (survey)
      say row time "$(date -u +%s)";
      for i in python3 nc; do
        command -v "$i" >/dev/null && say row "$i";
      done;
      if command -v curl >/dev/null; then
        set -- $(curl -q --version);
        say row curl "$2";
      fi;
      say ok;;
    (tls)
      set +f;
      for i in /etc/ssl/certs/????????.0; do
        [ ! -r "$i" ] || say row directory;
        break;
      done;
      set -f;
      [ -z "$3" ] || getent ahosts "$3" | while read -r i l; do
        say row at "$i";
      done;
      say ok;;
    (free)
      i=;
      IFS= read -r i < "/proc/$3/stat";
      set -- "$3" "$4" "$5" ${i##*")"};
      if [ "${23}" = "$2" ] && kill "-$3" "$1"; then
        say ok;
      else
        say no process;
      fi;;
    (linger)
      shift 2;
      G=;
      T=$(date +%s);
      case $T in
        (""|*[!0-9]*) say no date;;
        (*) G=$*; arm; say ok;;
      esac;;
    (part)
      if part; then
        say ok "$R";
      else
        say no remove;
      fi;;
    (remove)
      G=;
      if wipe; then
        say ok;
      else
        say no remove;
      fi;;
    (bye) part; say ok; leave 0;;
    (*) say no command;;
  esac;
done;
leave 0;
