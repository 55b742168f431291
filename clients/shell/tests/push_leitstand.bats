#!/usr/bin/env bats
# The shell client against the scripted server. Every test begins with what would be broken if it failed.

bats_require_minimum_version 1.5.0

setup() {
  here=$(cd "$(dirname "$BATS_TEST_FILENAME")" && pwd)
  push="$here/../push_leitstand.sh"
  scripted="$here/../../tests/scripted_server.py"
  cases="$here/../../tests/cases.json"
  cd "$BATS_TEST_TMPDIR" || return 1
  unset "${!LEITSTAND_@}" "${!CHRONIK_@}" FILE URL DOMAIN N
  export DOMAIN=example.com N=100 FILE=feed.jsonl LEITSTAND_BACKOFF=0.02
  printf '{"n":%d}\n' 1 2 3 >feed.jsonl
}

teardown() {
  [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
}

# Starts the scripted server with one case and points URL at it.
start() {
  rm -f in out
  mkfifo in
  python3 "$scripted" "$1" <in >out &
  server=$!
  exec 9>in
  for _ in $(seq 500); do [ -s out ] && break; sleep 0.01; done
  export URL="http://127.0.0.1:$(head -n 1 out)/"
}

# Ends the server; `saw` is what it saw.
stop() {
  exec 9>&-
  wait "$server"
  server=
  saw=$(tail -n 1 out)
}

@test "the cases of cases.json" {
  # If this fails, the shell client does something else than PROTOCOL.md says.
  export LEITSTAND_RETRIES LEITSTAND_TIMEOUT LEITSTAND_TOKEN=secret-token
  while read -r case; do
    LEITSTAND_RETRIES=$(jq -r '.retries // 2' <<<"$case")
    LEITSTAND_TIMEOUT=$(jq -r '.timeout_s // 2' <<<"$case")
    name=$(jq -r .name <<<"$case")
    start "$name"
    run "$push"
    stop
    echo "$name: $status: $output: $saw"
    [ "$status" -eq "$(jq 'if .expect.result == "ok" then 0 else 1 end' <<<"$case")" ]
    [ "$(jq .attempts <<<"$saw")" -eq "$(jq '.attempts_many // .expect.attempts' <<<"$case")" ]
    [[ $output == *"$(jq -r '.expect.text // ""' <<<"$case")"* ]]
    if [ "$status" -eq 1 ]; then
      [[ $output == *"0 von 3 Events bestätigt"*"Weiter mit N=3 "* ]]
      [ "$(jq -r .expect.written <<<"$case")" = "$([[ $output == *doppelt* ]] && echo maybe || echo no)" ]
    fi
    jq -e '(.tokens | all(. == "secret-token")) and (.lines | all(. == ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]))' <<<"$saw"
  done < <(jq -c '.cases[]' "$cases")
}

@test "the environment cases of cases.json" {
  # If this fails, a proxy, a certificate, a .curlrc or an odd event makes the shell client say what is not true, or
  # send something else than was there.
  skipped=0 ran=0
  printf '' >reasons
  while read -r case; do
    name=$(jq -r .name <<<"$case")
    reason=$(jq -r '.skip.shell // empty' <<<"$case")
    if [ -n "$reason" ]; then
      skipped=$((skipped + 1))
      echo "$reason" >>reasons
      continue
    fi
    ran=$((ran + 1))
    rm -rf tmp && mkdir tmp
    jq -r '.files // {} | keys[]' <<<"$case" | while read -r file; do
      jq -j --arg file "$file" '.files[$file]' <<<"$case" >"tmp/$file"
    done
    jq -j '.calls[0] | if type == "object" then .event // "" else . end' <<<"$case" >feed.jsonl
    hex=$(jq -r '.calls[0].hex? // empty' <<<"$case")
    [ -z "$hex" ] || printf "$(sed 's/../\\x&/g' <<<"$hex")" >feed.jsonl
    start "$name"
    port=${URL##*:} port=${port%/}
    filled() { sed -e "s#{url}#http://127.0.0.1:$port#g" -e "s#{port}#$port#g" -e "s#{dead}#http://127.0.0.1:9#g" -e "s#{tmp}#$PWD/tmp#g"; }
    mapfile -t settings < <(jq -r '.env // {} | to_entries[] | "\(.key)=\(.value)"' <<<"$case" | filled)
    address=$(jq -r '.url // "{url}"' <<<"$case" | filled)
    run env LEITSTAND_TOKEN=s3cret LEITSTAND_RETRIES=0 LEITSTAND_TIMEOUT=2 "${settings[@]}" URL="$address" "$push"
    stop
    echo "$name: $status: $output: $saw"
    [[ $output != *s3cret* ]]
    if [ "$(jq -r '.expect.calls[0].result' <<<"$case")" = ok ]; then
      [ "$status" -eq 0 ]
    else
      [ "$status" -ne 0 ]
      [[ $output == *"$(jq -r '.expect.calls[0].text // ""' <<<"$case")"* ]]
      [ "$(jq -r '.expect.calls[0].written' <<<"$case")" = "$([[ $output == *doppelt* ]] && echo maybe || echo no)" ]
    fi
    # As text where the case says raw: nothing may be written otherwise.
    jq -e --argjson case "$case" '$case.expect.attempts as $n | $n == null or .attempts == $n' <<<"$saw" >/dev/null
    jq -e --argjson case "$case" '$case.expect.requests as $seen | $seen == null or .requests == $seen' <<<"$saw" >/dev/null
    if [ "$(jq -r .raw <<<"$case")" = true ]; then
      [ "$(jq -c .stored <<<"$saw")" = "$(jq -c .expect.stored <<<"$case")" ]
    else
      jq -e --argjson case "$case" '$case.expect.stored == null or (.stored | map(fromjson)) == ($case.expect.stored | map(fromjson))' <<<"$saw" >/dev/null
    fi
  done < <(jq -c '.environment[]' "$cases")
  echo "# environment: $ran cases run, $skipped skipped: $(sort reasons | uniq -c | tr -s ' ' | paste -sd, -)" >&3
  [ "$ran" -gt 20 ]
}

@test "a server of old" {
  # If this fails, a server that knows only the old path, or no NDJSON, gets nothing, or another thing than the libraries send.
  start a_server_of_old
  run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -c .requests <<<"$saw")" = '[["/v1/ingest","application/x-ndjson"],["/ingest/example.com","application/json"]]' ]
  start a_server_that_takes_no_ndjson
  run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -c .requests <<<"$saw")" = '[["/v1/ingest","application/x-ndjson"],["/v1/ingest","application/json"]]' ]
  # What was good the first time is not looked for again.
  jq -nc 'range(10001) | {n: .}' >feed.jsonl
  start a_server_of_old
  N=10001 run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -c '[.requests[][0]]' <<<"$saw")" = '["/v1/ingest","/ingest/example.com","/ingest/example.com"]' ]
}

@test "an event is sent as it is, or refused" {
  # If this fails, the shell client changes an event on its way, or lets the service answer for half a feed.
  printf '%s\n' '{"n":1.10,"m":1E2,"o":-0.0,"p":12345678901234567890123}' '{"a":{"k":1,"k":2},"k":"\\\" {[ \u00e9","k":"é"}' \
    '{"deep":[[],{},[[1 , 2],{"x" :	null}]]}{"n":2}  {"n" : true}' >feed.jsonl
  start good_202
  run "$push"
  echo "$output"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -r '.lines[0][]' <<<"$saw")" = '{"n":1.10,"m":1E2,"o":-0.0,"p":12345678901234567890123}
{"a":{"k":1,"k":2},"k":"\\\" {[ \u00e9","k":"é"}
{"deep":[[],{},[[1,2],{"x":null}]]}
{"n":2}
{"n":true}' ]
  start good_202
  for bad in '{"n":NaN}' '{"n":nan}' '{"n":-nan}' '{"n":[1,-1e999]}' '{"n":01}' '{"n":.5}' '{"n":1.}' '{"n":+1}' '[1]' '1' '"x"' 'null' \
    '{"n":"\t	"}' '{"n":"\x"}' '{"n":1}x' "{'n':1}" '{"n":1}]' $'{"n":"\xff"}' $'{"n":"\xc0\x80"}' $'{"n":"\xf4\x90\x80\x80"}' $'\xef\xbb\xbf{"n":1}'; do
    printf '{"n":1}\n%s\n' "$bad" >feed.jsonl
    run "$push"
    echo "$bad: $status: $output"
    [ "$status" -eq 1 ]
    [[ $output == "✗ Nichts gesendet: "* ]]
  done
  printf '{"n":"a\0b"}\n' >feed.jsonl
  run "$push"
  [ "$status" -eq 1 ]
  stop
  [ "$(jq .attempts <<<"$saw")" -eq 0 ]
}

@test "a full disk for the files in between" {
  # If this fails, a full disk is called a broken feed, or an answer that could not be kept "not stored".
  mkdir full
  if ! mount -t tmpfs -o size=64k tmpfs full 2>/dev/null; then skip "needs root to mount a small tmpfs"; fi
  jq -nc 'range(100) | {n: ., pad: ("x" * 2000)}' >feed.jsonl
  start good_202
  TMPDIR=$PWD/full run "$push"
  umount full
  echo "$output"
  [ "$status" -eq 1 ]
  [[ $output == "✗ Nichts gesendet: "*"No space left"* ]]
  stop
  [ "$(jq .attempts <<<"$saw")" -eq 0 ]
}

@test "the last values of a pretty-printed stream" {
  # If this fails, other events are sent than were asked for.
  printf '{"n":1}\n{\n  "n": 2,\n  "text": "a\\nb"\n}{"n":3}' >feed.jsonl
  start good_202
  N=2 run "$push"
  [ "$status" -eq 0 ]
  [ "$output" = "✓ Gesendet: letzte 2 Events aus feed.jsonl → ${URL%/}/v1/ingest?domain=example.com" ]
  stop
  [ "$(jq -c .lines <<<"$saw")" = '[["{\"n\":2,\"text\":\"a\\nb\"}","{\"n\":3}"]]' ]
}

@test "one request for many events, within the limits" {
  # If this fails, a feed runs into the rate limit, or a request is too large for the server.
  jq -nc 'range(25000) | {n: .}' >feed.jsonl
  start good_202
  N=24000 run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -c '[.lines[] | length]' <<<"$saw")" = '[10000,10000,4000]' ]
  jq -nc 'range(5) | {n: ., pad: ("x" * 200000)}' >feed.jsonl
  start good_202
  N=5 run "$push"
  stop
  [ "$(jq -c '[.lines[] | length]' <<<"$saw")" = '[2,2,1]' ]
}

@test "nothing to send" {
  # If this fails, an empty feed is an error, or makes a request.
  : >feed.jsonl
  start good_202
  run "$push"
  [ "$status" -eq 0 ]
  [[ $output == "✓ Gesendet: letzte 0 Events"* ]]
  printf '{}' >feed.jsonl
  N=0 run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq .attempts <<<"$saw")" -eq 0 ]
}

@test "the domain is one value of the query" {
  # If this fails, a domain with a blank or & reaches another parameter.
  start good_202
  DOMAIN='a b&c=ä/?' run "$push"
  [ "$status" -eq 0 ]
  [[ $output == *"/v1/ingest?domain=a%20b%26c%3D%C3%A4%2F%3F" ]]
}

@test "the token is in no process list" {
  # If this fails, every user of the machine can read the token.
  start always_slow
  export LEITSTAND_TOKEN=very-secret LEITSTAND_TIMEOUT=1 LEITSTAND_RETRIES=0
  "$push" 2>message &
  pushing=$!
  found= curl_seen=
  for _ in $(seq 200); do
    processes=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ')
    [[ $processes != *very-secret* ]] || found=yes
    [[ $processes != *curl\ -q\ -sS*/v1/ingest* ]] || curl_seen=yes
    kill -0 "$pushing" 2>/dev/null || break
  done
  wait "$pushing" || true
  [ "$curl_seen" = yes ]
  [ -z "$found" ]
  ! grep very-secret message
  stop
  [ "$(jq -c .tokens <<<"$saw")" = '["very-secret"]' ]
}

@test "where the token comes from" {
  # If this fails, requests carry another token than was set, or a header without one.
  start good_202
  CHRONIK_TOKEN=old run "$push"
  LEITSTAND_TOKEN=new CHRONIK_TOKEN=old run "$push"
  run "$push"
  [ "$status" -eq 0 ]
  stop
  [ "$(jq -c .tokens <<<"$saw")" = '["old","new",null]' ]
}

@test "an event over the limit, and a file that is no JSON" {
  # If this fails, half a feed is sent before somebody learns that the rest cannot be.
  jq -nc '{n: 1}, {n: 2, pad: ("x" * 1000000)}' >feed.jsonl
  start good_202
  run "$push"
  [ "$status" -eq 1 ]
  [[ $output == "✗ Nichts gesendet: Event 2 der letzten 2 ist größer als 1000000 Bytes"* ]]
  printf '{"n":1}\n{"n":' >feed.jsonl
  run "$push"
  [ "$status" -eq 1 ]
  [[ $output == "✗ Nichts gesendet: feed.jsonl ist kein JSON-Strom"* ]]
  stop
  [ "$(jq .attempts <<<"$saw")" -eq 0 ]
}

@test "wrong settings" {
  # If this fails, a script cannot tell a wrong setting from a server that is down.
  export URL=http://127.0.0.1:9
  for setting in FILE= URL= DOMAIN= N= N=-1 N=1x URL=localhost:8788 URL=ftp://x 'URL=http://x/?a=b' FILE=/nowhere FILE=. \
    LEITSTAND_TIMEOUT=0 LEITSTAND_TIMEOUT=x CHRONIK_RETRIES=-1 LEITSTAND_RETRIES=1.5 LEITSTAND_BACKOFF=x; do
    run env "$setting" "$push"
    echo "$setting: $status: $output"
    [ "$status" -eq 2 ]
    [[ $output == *"${setting%%=*}"* ]]
  done
  LEITSTAND_TOKEN=$'xyz\nx' run "$push"
  [ "$status" -eq 2 ]
  [[ $output == *LEITSTAND_TOKEN* && $output != *xyz* ]]
}

@test "a missing tool" {
  # If this fails, the message is one of bash and the exit code not 127.
  export URL=http://127.0.0.1:9
  mkdir bin
  for tool in bash env dirname; do ln -s "$(command -v "$tool")" bin/; done
  PATH=$PWD/bin run -127 "$push"
  [ "$status" -eq 127 ]
  [ "$output" = "Fehlt: jq" ]
}

@test "a signal in the middle" {
  # If this fails, whoever stops it does not learn what was sent, or finds its files in between.
  jq -nc 'range(10001) | {n: .}' >feed.jsonl
  export N=10001 LEITSTAND_TIMEOUT=2 LEITSTAND_RETRIES=9 TMPDIR=$PWD/between
  mkdir between
  for signal in TERM HUP; do
    start a_stop_in_the_middle
    "$push" 2>message &
    pushing=$!
    # The second request has no answer for a while.
    for _ in $(seq 1000); do [ "$(find between -name part-000000002 | wc -l)" -eq 1 ] && break; sleep 0.01; done
    sleep 1
    kill -s "$signal" "$pushing"
    code=0
    wait "$pushing" || code=$?
    stop
    echo "$signal: $code: $(cat message): $(jq -c .attempts <<<"$saw")"
    [ "$code" -eq "$([ "$signal" = TERM ] && echo 143 || echo 129)" ]
    [[ $(cat message) == *"Abgebrochen: 10000 von 10001 Events bestätigt"*"Weiter mit N=1 "*"Die nächsten 1 Events"*doppelt* ]]
    [ -z "$(ls between)" ]
  done
}

@test "no server" {
  # If this fails, somebody believes that events were sent.
  export URL=http://127.0.0.1:9 LEITSTAND_RETRIES=1
  run "$push"
  [ "$status" -eq 1 ]
  [[ $output == *"0 von 3 Events bestätigt, dann (nach 1 Wiederholungen): curl: (7)"*"Weiter mit N=3 "* ]]
  [[ $output != *doppelt* ]]
}

@test "the shell options of the caller" {
  # If this fails, nothing is sent and the client says that all was.
  export URL=http://127.0.0.1:9 LEITSTAND_RETRIES=0
  for options in -f "-O failglob" "-O nullglob"; do
    # shellcheck disable=SC2086
    run bash $options "$push"
    [ "$status" -eq 1 ]
    [[ $output == *"0 von 3 Events bestätigt"* ]]
  done
  run env SHELLOPTS=noglob "$push"
  [ "$status" -eq 1 ]
}
