#!/bin/bash
# Judges of others for our printers: the five suites of ipptool over IPP and IPPS, malformed requests, and the print
# dialog's view (avahi-browse, ippfind, lpstat -e, lp) from a second network namespace with its own D-Bus, Avahi and CUPS.
#
#   tests/devices/printers.sh DIRECTORY     where the examples ipp_printer and print_bench are, such as
#                                           target/debug/examples after cargo build -p atrium-device --examples;
#                                           with peer-node and atrium one directory up, these too
#
# As root it installs what is missing from Debian. The exit code of ipptool lies: [FAIL] lines are counted.
set -u
bin=$(realpath "${1:?where are ipp_printer and print_bench?}")
suites=/usr/share/cups/ipptool
passed=0 failed=0
work=$(mktemp -d)
pids=()

pass() { passed=$((passed + 1)); echo "ok      $*"; }
fail() { failed=$((failed + 1)); echo "FAILED  $*"; }
check() { local what=$1; shift; if "$@" >/dev/null 2>&1; then pass "$what"; else fail "$what"; fi; }

finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    [ -f "$work/client.pids" ] && while read -r pid; do kill "$pid" 2>/dev/null; done < "$work/client.pids"
    ip netns del atrium-prn 2>/dev/null
    ip netns del atrium-cli 2>/dev/null
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap finish EXIT

needed=(ipptool:cups-ipp-utils ippfind:cups-ipp-utils lpstat:cups-client cupsd:cups avahi-daemon:avahi-daemon
    avahi-browse:avahi-utils dbus-daemon:dbus ip:iproute2 python3:python3)
packages=()
for pair in "${needed[@]}"; do
    PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
[ -e /usr/lib/x86_64-linux-gnu/libnss_mdns4_minimal.so.2 ] || [ -n "$(find /lib /usr/lib -name 'libnss_mdns4_minimal*' 2>/dev/null)" ] ||
    packages+=(libnss-mdns)
[ -x /usr/lib/cups/filter/pdftopdf ] || packages+=(cups-filters)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -q >"$work/apt.log" 2>&1
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" >"$work/apt.log" 2>&1 ||
            { echo "missing, and not installable: ${packages[*]}"; tail -3 "$work/apt.log"; exit 1; }
    else
        echo "missing: ${packages[*]}"
        exit 1
    fi
fi
export PATH=$PATH:/usr/sbin

# Sample documents, made here. The JPEG file is a white square.
"$bin/print_bench" sample "$work/doc.pdf" 2
"$bin/print_bench" sample "$work/doc.pwg" 1
python3 - "$work/doc.jpg" <<'PY'
import base64, sys
open(sys.argv[1], "wb").write(base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8Q"
    "EBD/yQALCAABAAEBAREA/8wABgAQEAX/2gAIAQEAAD8A0s8g/9k="))
PY

"$bin/ipp_printer" --dir "$work/state" --out "$work/out" >"$work/printer.log" 2>&1 &
printer=$!
pids+=("$printer")
for _ in $(seq 100); do grep -q READY "$work/printer.log" && break; sleep 0.1; done
port=$(sed -n 's/.*READY port=\([0-9]*\) .*/\1/p' "$work/printer.log")
tls=$(sed -n 's/.*tls-port=\([0-9]*\).*/\1/p' "$work/printer.log")
[ -n "$port" ] || { echo "the printer does not start"; cat "$work/printer.log"; exit 1; }

suite() { # URI FILE SUITE VERSION
    local log="$work/suite.log" uri=$1 file=$2 name=$3
    timeout 300 ipptool -V "$4" -tI -f "$work/$file" "$uri" "$suites/$name.test" >"$log" 2>&1
    local good bad
    good=$(grep -c '\[PASS\]' "$log")
    bad=$(grep -c '\[FAIL\]' "$log")
    if [ "$bad" = 0 ] && [ "$good" -ge 30 ]; then
        pass "$name over ${uri%%:*} with $file: $good passed, $(grep -c '\[SKIP\]' "$log") skipped"
    else
        fail "$name over ${uri%%:*} with $file: $good passed, $bad failed"
        grep -A12 '\[FAIL\]' "$log" | head -40
    fi
}
for pair in "ipp://localhost:$port" "ipps://localhost:$tls"; do
    suite "$pair/ipp/print" doc.pdf ipp-1.1 1.1
    suite "$pair/ipp/print" doc.pdf ipp-2.0 2.0
    suite "$pair/ipp/print" doc.pdf ipp-2.1 2.1
    suite "$pair/ipp/print" doc.pdf ipp-2.2 2.2
    suite "$pair/ipp/print" doc.pdf ipp-everywhere 2.0
done
suite "ipp://localhost:$port/ipp/print" doc.jpg ipp-everywhere 2.0
suite "ipp://localhost:$port/ipp/print" doc.pwg ipp-everywhere 2.0

# Malformed requests: an error of IPP or HTTP 400, quickly, and the printer is as it was.
bad=$(python3 - "$port" "$printer" <<'PY'
import socket, struct, sys, time

port, pid = int(sys.argv[1]), sys.argv[2]
uri = b"ipp://localhost:%d/ipp/print" % port

def item(tag, name, value):
    return bytes([tag]) + struct.pack(">H", len(name)) + name + struct.pack(">H", len(value)) + value

CHARSET = item(0x47, b"attributes-charset", b"utf-8")
LANGUAGE = item(0x48, b"attributes-natural-language", b"en")
URI = item(0x45, b"printer-uri", uri)

def message(body, version=(2, 0), operation=0x0B, request=1, end=b"\x03"):
    return bytes(version) + struct.pack(">HI", operation, request) + b"\x01" + body + end

def nested(depth):
    out = item(0x34, b"media-col", b"")
    for _ in range(depth - 1):
        out += item(0x4A, b"", b"m") + item(0x34, b"", b"")
    return out + item(0x37, b"", b"") * depth

def memory():
    for line in open("/proc/%s/status" % pid):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

def send(body, length=None):
    begin = time.monotonic()
    with socket.create_connection(("localhost", port), timeout=20) as s:
        head = b"POST /ipp/print HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/ipp\r\nConnection: close\r\n"
        try:
            s.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body)
            if length is not None:
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = b""
        try:
            while True:
                part = s.recv(65536)
                if not part:
                    break
                got += part
        except OSError:
            pass
    took = time.monotonic() - begin
    if not got:
        return "closed", took
    status = int(got.split(b" ", 2)[1])
    if status != 200:
        return "HTTP %d" % status, took
    return struct.unpack(">H", got.split(b"\r\n\r\n", 1)[1][2:4])[0], took

good = CHARSET + LANGUAGE + URI
big = b"".join(item(0x30, b"a%d" % n, b"x" * 32000) for n in range(60))
table = [
    ("a good request", message(good), None, [0]),
    ("request-id 0", message(good, request=0), None, [0x400]),
    ("version 0.0", message(good, version=(0, 0)), None, [0x503]),
    ("version 9.9", message(good, version=(9, 9)), None, [0x503]),
    ("wrong attribute order", message(LANGUAGE + CHARSET + URI), None, [0x400]),
    ("no attributes", message(b""), None, [0x400]),
    ("unknown operation", message(good, operation=0x3FFF), None, [0x501]),
    ("unknown charset", message(item(0x47, b"attributes-charset", b"ebcdic") + LANGUAGE + URI), None, [0x40D]),
    ("another printer", message(CHARSET + LANGUAGE + item(0x45, b"printer-uri", b"ipp://localhost/printers/x")), None, [0x406]),
    ("depth 10", message(good + b"\x02" + nested(10)), None, [0]),
    ("depth 11", message(good + b"\x02" + nested(11)), None, [0x400]),
    ("depth 20,000", message(good + b"\x02" + nested(20000)), None, [0x400, 0x408]),
    ("1.9 MB of attributes", message(good + big), None, [0x408]),
    ("a value that says 65,535 bytes", message(good + b"\x30\x00\x01a\xff\xff"), None, [0x409]),
    ("200,000 tiny values", message(good + item(0x13, b"a", b"") + b"\x13\0\0\0\0" * 200000), None, [0x408]),
    ("an attribute twice", message(good + item(0x22, b"a", b"\1") + item(0x22, b"a", b"\1")), None, [0x400]),
    ("an integer of 3 bytes", message(good + item(0x21, b"limit", b"abc")), None, [0x400]),
    ("not UTF-8", message(good + item(0x42, b"job-name", b"\xff\xfe")), None, [0x400]),
    ("truncated in a name", message(good)[:40], None, [0x400]),
    ("truncated in the head", b"\x02\x00\x00", None, ["HTTP 400"]),
    ("empty", b"", None, ["HTTP 400"]),
    ("nonsense", b"\xde\xad\xbe\xef" * 1000, None, [0x400, 0x408, 0x409]),
    ("a body that ends before its length", message(good)[:60], 5000, [0x400, "HTTP 400", "HTTP 408", "closed"]),
]
send(message(good))
before = memory()
for what, body, length, expected in table:
    got, took = send(body, length)
    shown = got if isinstance(got, str) else "%#06x" % got
    ok = got in expected and took < 1
    print("%s malformed: %s: %s in %.0f ms" % ("ok" if ok else "FAILED", what, shown, took * 1000))
for _ in range(200):
    send(table[11][1]), send(table[13][1]), send(table[17][1])
for _ in range(20):
    send(table[12][1])
grown = memory() - before
print("%s malformed: memory grew by %d kB over 620 of them" % ("ok" if grown < 32768 else "FAILED", grown))
got, _ = send(message(good))
print("%s malformed: the printer answers after all of them" % ("ok" if got == 0 else "FAILED"))
PY
)
while read -r verdict what; do
    if [ "$verdict" = ok ]; then pass "$what"; else fail "$what"; fi
done <<<"$bad"

# kill -9 at each step between accept and print: what was answered is printed once.
crash() { # STEP FILE
    local dir="$work/crash-$1-$2" answered=0 n
    mkdir -p "$dir"
    for round in 1 2; do
        if [ $round = 1 ]; then export ABORT_AT=$1:3; else unset ABORT_AT; fi
        : >"$dir/log$round"
        "$bin/ipp_printer" --dir "$dir/state" --out "$dir/out" >"$dir/log$round" 2>&1 &
        local pid=$!
        for _ in $(seq 100); do grep -q READY "$dir/log$round" && break; sleep 0.05; done
        local at
        at=$(sed -n 's/.*READY port=\([0-9]*\) .*/\1/p' "$dir/log$round")
        if [ $round = 1 ]; then
            for _ in 1 2 3 4; do
                ipptool -tf "$work/$2" "ipp://localhost:$at/ipp/print" "$suites/print-job.test" 2>/dev/null | grep -q '\[PASS\]' &&
                    answered=$((answered + 1))
            done
            kill -9 $pid 2>/dev/null
        else
            for _ in $(seq 100); do
                n=$(ipptool -tv "ipp://localhost:$at/ipp/print" "$suites/get-jobs.test" 2>/dev/null | grep -c 'job-id (integer) =')
                [ "$n" = 0 ] && break
                sleep 0.1
            done
            kill $pid 2>/dev/null
        fi
        wait $pid 2>/dev/null
    done
    local files jobs
    files=$(find "$dir/out" -type f ! -name '.*' | wc -l)
    jobs=$(find "$dir/out" -type f ! -name '.*' -printf '%f\n' | cut -d- -f1 | sort -u | wc -l)
    # What was not answered may be there too, once.
    if [ "$files" = "$jobs" ] && [ "$files" -ge "$answered" ] && [ "$answered" -ge 1 ] && [ "$files" -le 4 ]; then
        pass "killed at $1 with $2: $answered answered, $files printed, none twice"
    else
        fail "killed at $1 with $2: $answered answered, $files files of $jobs jobs"
    fi
}
"$bin/print_bench" sample "$work/large.pdf" 600
for step in journal-write journal-sync account journal-synced accepted output-begin folder-write folder-sync folder-rename \
    folder-renamed output-end; do
    crash $step doc.pdf 2>/dev/null
done
for step in spool-write spool-sync folder-rename output-end; do crash $step large.pdf 2>/dev/null; done

# A queue of CUPS as the output: what it gets is what was printed, once, also if we are killed while it prints.
cat >"$work/cups.sh" <<'CUPS'
mount -t tmpfs tmpfs /run && mkdir -p /run/cups
mount -t tmpfs tmpfs /var/spool/cups && mkdir -p /var/spool/cups/tmp && chown root:lp /var/spool/cups /var/spool/cups/tmp
cp -a /etc/cups "$WORK/etc-cups2" && mount --bind "$WORK/etc-cups2" /etc/cups
python3 - "$WORK/sink" <<'PY' &
import os, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 0)); s.listen(9)
os.makedirs(sys.argv[1])
open(sys.argv[1] + "/port.tmp", "w").write(str(s.getsockname()[1]))
os.rename(sys.argv[1] + "/port.tmp", sys.argv[1] + "/port")
n = 0
while True:
    c, _ = s.accept()
    got = b""
    while part := c.recv(65536):
        got += part
    c.close()
    n += 1
    open("%s/job-%d" % (sys.argv[1], n), "wb").write(got)
PY
sink=$!
for _ in $(seq 50); do [ -e "$WORK/sink/port" ] && break; sleep 0.1; done
cupsd -f & cups=$!
for _ in $(seq 50); do [ -S /run/cups/cups.sock ] && break; sleep 0.1; done
lpadmin -p sink -E -v "socket://127.0.0.1:$(cat "$WORK/sink/port")" -m raw
start() { : >"$WORK/cups-printer.log"; "$BIN/ipp_printer" --dir "$WORK/state3" --out "$WORK/out3" --to cups:sink >"$WORK/cups-printer.log" 2>&1 & ours=$!
    for _ in $(seq 100); do grep -q READY "$WORK/cups-printer.log" && break; sleep 0.1; done
    port=$(sed -n 's/.*READY port=\([0-9]*\) .*/\1/p' "$WORK/cups-printer.log"); }
files() { for _ in $(seq 300); do [ "$(ls "$WORK/sink" | grep -c job)" -ge "$1" ] && break; sleep 0.1; done; }
start
ipptool -tf "$WORK/doc.pdf" "ipp://localhost:$port/ipp/print" /usr/share/cups/ipptool/print-job.test
files 1
kill $ours; wait $ours
export ABORT_AT=output-end:1
start
ipptool -tf "$WORK/doc.pdf" "ipp://localhost:$port/ipp/print" /usr/share/cups/ipptool/print-job.test
wait $ours
unset ABORT_AT
start
files 2
for _ in $(seq 100); do
    ipptool -tv "ipp://localhost:$port/ipp/print" /usr/share/cups/ipptool/get-jobs.test | grep -q 'job-id (integer) =' || break
    sleep 0.1
done
sleep 2
kill $ours $cups $sink
CUPS
if [ "$(id -u)" = 0 ]; then
    WORK=$work BIN=$bin timeout 120 unshare -m --propagation private bash "$work/cups.sh" >"$work/cups.log" 2>&1
    check "CUPS gets what was printed" cmp "$work/doc.pdf" "$work/sink/job-1"
    check "CUPS gets a job whose end we did not live to see" cmp "$work/doc.pdf" "$work/sink/job-2"
    if [ "$(find "$work/sink" -name 'job-*' | wc -l)" = 2 ]; then pass "CUPS gets it once"; else fail "CUPS gets it once"; fi
fi

# The print dialog's view, from another machine.
if [ "$(id -u)" != 0 ] || ! ip netns add atrium-prn 2>/dev/null || ! ip netns add atrium-cli 2>/dev/null; then
    echo "SKIPPED the second network namespace: it needs root"
else
    ip link add aprn0 netns atrium-prn type veth peer name acli0 netns atrium-cli
    for pair in prn:1 cli:2; do
        ns=${pair%%:*} n=${pair##*:}
        ip -n atrium-$ns link set lo up
        ip -n atrium-$ns addr add 10.83.0.$n/24 dev a${ns}0
        ip -n atrium-$ns link set a${ns}0 up
        ip -n atrium-$ns route add default via 10.83.0.$n dev a${ns}0 2>/dev/null
    done
    ip netns exec atrium-prn "$bin/ipp_printer" --dir "$work/state2" --out "$work/out2" --name laser --host atrium-test \
        --announce --interface aprn0 >"$work/printer2.log" 2>&1 &
    announced=$!
    pids+=("$announced")
    cat >"$work/client.sh" <<'CLIENT'
mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/avahi-daemon /run/cups && chown avahi:avahi /run/avahi-daemon
mount -t tmpfs tmpfs /var/spool/cups && mkdir -p /var/spool/cups/tmp && chown root:lp /var/spool/cups /var/spool/cups/tmp
cp -a /etc/cups "$WORK/etc-cups" && mount --bind "$WORK/etc-cups" /etc/cups
dbus-daemon --system --nofork --nopidfile & echo $! >>"$WORK/client.pids"
for _ in $(seq 50); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.1; done
avahi-daemon --no-drop-root --no-rlimits >"$WORK/avahi.log" 2>&1 & echo $! >>"$WORK/client.pids"
for _ in $(seq 50); do [ -S /run/avahi-daemon/socket ] && break; sleep 0.1; done
cupsd -f >"$WORK/cupsd.log" 2>&1 & echo $! >>"$WORK/client.pids"
for _ in $(seq 50); do [ -S /run/cups/cups.sock ] && break; sleep 0.1; done
sleep 3
for type in _ipp._tcp _ipps._tcp _universal._sub._ipp._tcp _print._sub._ipp._tcp _universal._sub._ipps._tcp _print._sub._ipps._tcp; do
    timeout 20 avahi-browse -rpt $type >"$WORK/browse$type" 2>&1
done
timeout 20 ippfind -T 5 -l >"$WORK/ippfind" 2>&1
timeout 30 lpstat -e >"$WORK/lpstat" 2>&1
queue=$(head -1 "$WORK/lpstat")
timeout 60 lp -d "$queue" "$WORK/doc.pdf" >"$WORK/lp" 2>&1
for _ in $(seq 200); do ls "$WORK/out2" 2>/dev/null | grep -q pdf && break; sleep 0.1; done
# A queue of CUPS that prints on it by its name in DNS-SD is not shared onward by a node; one that prints elsewhere is.
if [ -x "$BIN/../peer-node" ]; then
    export HOME=$WORK ATRIUM_PEER_SOCKET=$WORK/peer.sock XDG_STATE_HOME=$WORK/xdg XDG_RUNTIME_DIR=$WORK
    printf '[node]\nstate_directory = "%s/peer"\nsocket = "%s/peer.sock"\nlisten = ["127.0.0.1:0"]\nname = "pc"\n[discovery]\nmdns = false\nbeacon = false\n[devices]\nipp_listen = ["127.0.0.1:0"]\nipps_listen = ["127.0.0.1:0"]\nannounce = false\n' "$WORK" "$WORK" >"$WORK/peer.toml"
    "$BIN/../peer-node" --config "$WORK/peer.toml" >"$WORK/peer.out" 2>"$WORK/peer.log" & echo $! >>"$WORK/client.pids"
    for _ in $(seq 100); do [ -s "$WORK/peer.out" ] && break; sleep 0.1; done
    "$BIN/../atrium" init acme --name pc --person pc >"$WORK/onward" 2>&1
    for service in _ipp _ipps; do
        lpadmin -p found$service -E -v "dnssd://laser.$service._tcp.local/" -m raw 2>/dev/null
        "$BIN/../atrium" share printers/found$service --output cups:found$service --with everyone --json >"$WORK/onward$service" 2>&1
    done
    lpadmin -p elsewhere -E -v "dnssd://other._ipp._tcp.local/" -m raw 2>/dev/null
    "$BIN/../atrium" share printers/elsewhere --output cups:elsewhere --with everyone --json >"$WORK/elsewhere" 2>&1
fi
touch "$WORK/printed"
for _ in $(seq 100); do [ -e "$WORK/stopped" ] && break; sleep 0.1; done
sleep 2
timeout 20 avahi-browse -pt _ipp._tcp >"$WORK/gone" 2>&1
while read -r pid; do kill "$pid"; done <"$WORK/client.pids"
CLIENT
    WORK=$work BIN=$bin ip netns exec atrium-cli unshare -m bash "$work/client.sh" >"$work/client.log" 2>&1 &
    client=$!
    for _ in $(seq 1200); do [ -e "$work/printed" ] && break; kill -0 $client 2>/dev/null || break; sleep 0.1; done
    kill "$announced" && wait "$announced" 2>/dev/null
    touch "$work/stopped"
    wait $client 2>/dev/null
    for type in _ipp._tcp _ipps._tcp _universal._sub._ipp._tcp _print._sub._ipp._tcp _universal._sub._ipps._tcp _print._sub._ipps._tcp; do
        check "avahi-browse $type shows it" grep -q '^=;.*;laser;.*rp=ipp/print' "$work/browse$type"
    done
    check "ippfind shows it" grep -q 'ipp://.*/ipp/print' "$work/ippfind"
    check "lpstat -e shows it" grep -q laser "$work/lpstat"
    check "lp takes a job for it" grep -q 'request id is' "$work/lp"
    check "the job of lp is printed" sh -c "ls '$work/out2' | grep -q 'pdf\$'"
    if [ -e "$work/elsewhere" ]; then
        check "a node does not share it onward from a queue of CUPS (_ipp)" grep -q RESOURCE_REMOTE "$work/onward_ipp"
        check "a node does not share it onward from a queue of CUPS (_ipps)" grep -q RESOURCE_REMOTE "$work/onward_ipps"
        check "it shares another queue" grep -q '"address":"acme/pc/printers/elsewhere"' "$work/elsewhere"
    fi
    uuid=$(grep -o 'UUID=[0-9a-f-]*' "$work/browse_ipp._tcp" | head -1 | cut -d= -f2)
    check "its UUID is that of printer-uuid" grep -rqa "$uuid" "$work/state2/journal"
    if grep -q '^+;.*;laser;' "$work/gone"; then fail "it says goodbye"; else pass "it says goodbye"; fi
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
