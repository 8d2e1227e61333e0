#!/bin/busybox sh
# Process 1 of the guest. A process costs a CPU in software dearly, so builtins do whatever they
# can, and the applets' links were made when the archive was.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ -e /bin/sh ] || /bin/busybox --install -s

mount -t devtmpfs dev /dev
cp -a /.doppel/dev/. /dev
mount -a
ip link set lo up
read -r name </etc/hostname && echo "$name" >/proc/sys/kernel/hostname
cd "$HOME"
unset OLDPWD

# What to run: the monitor appends an archive with /.doppel/session, and /.doppel/command.
kind=shell rows='' columns='' term=vt102 input=null modules=''
[ ! -e /.doppel/session ] || . /.doppel/session
[ -z "$modules" ] || modprobe -a $modules

# Runs a session on terminal $1, of the size given, which follows the monitor's
# `size ROWS COLUMNS` lines.
terminal() {
    tty=$1
    shift
    export TERM="$term"
    exec 9<>/dev/ttyS3
    while read -r word rows columns; do
        [ "$word" != size ] || stty -F "$tty" rows "$rows" cols "$columns"
    done <&9 &
    watcher=$!
    # The session's own process opens the terminal and keeps it open: a size is forgotten at the
    # last close, and what is unsent is, at the session's end, unless that is the last close.
    (
        exec <"$tty" >"$tty" 2>&1
        stty sane -ixoff iutf8 -brkint ${rows:+rows $rows} ${columns:+cols $columns}
        echo ready >&9
        exec 9<&-
        exec setsid -c "$@"
    )
    status=$?
    {
        kill -KILL $watcher
        wait $watcher
    } 2>/dev/null
    exec 9<&-
}

# Pipes, so that the command finds no terminal. The input line is in canonical mode, where the
# kernel turns the monitor's Ctrl-D into the end of the input (see `StdinEncoder`).
streams() {
    unset TERM
    # Both ends of both pipes are open before anybody runs, so that nothing is lost to a process
    # that comes late, or ends early.
    exec 5<>/.doppel/stdout 6<>/.doppel/stderr 7</.doppel/stdout 8</.doppel/stderr
    stty -F /dev/ttyS2 115200 -opost
    if [ "$input" = stream ]; then
        exec 4</dev/ttyS1
        stty 115200 crtscts -opost -echo -isig icanon iexten -icrnl -ixon -ixoff eof ^D lnext ^V \
            erase undef kill undef werase undef rprnt undef eol undef eol2 undef <&4
        cat <&4 >/.doppel/stdin 4<&- 5<&- 6<&- 7<&- 8<&- &
        reader=$!
        exec 4<&-
        from=/.doppel/stdin
    else
        stty -F /dev/ttyS1 115200 -opost -echo
        reader='' from=/dev/null
    fi
    cat <&7 >/dev/ttyS1 5<&- 6<&- 7<&- 8<&- &
    out=$!
    cat <&8 >/dev/ttyS2 5<&- 6<&- 7<&- 8<&- &
    err=$!
    exec 7<&- 8<&-
    echo ready >/dev/ttyS3
    (. /.doppel/command) <$from >/.doppel/stdout 2>/.doppel/stderr 5<&- 6<&-
    status=$?
    # What the command leaves behind ends with it, except for the two that carry its output.
    for process in /proc/[0-9]*; do
        case ${process#/proc/} in
            1 | $out | $err) ;;
            *) kill -KILL "${process#/proc/}" ;;
        esac
    done 2>/dev/null
    # The last close of a serial port waits until all is sent; it must not be a killed process's.
    [ -z "$reader" ] || wait $reader
    exec 5<&- 6<&-
    wait $out $err
}

case $kind in
    shell) terminal /dev/ttyS0 sh -l ;;
    terminal) terminal /dev/ttyS1 sh /.doppel/command ;;
    streams) streams ;;
esac
echo "exit $status" >/dev/ttyS3
poweroff -f
