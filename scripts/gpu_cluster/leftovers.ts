import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const SHM = '/dev/shm'
/** What a process that was killed may take to be gone. */
const GONE_MS = 5000
const AGAIN_MS = 10
/** Of a directory in which a process that dies still writes. */
const REMOVE_TRIES = 10

/** A process that may be started several times. */
interface Started {
  /** Of every time; the last one may be alive. */
  readonly pids: readonly number[]
  readonly alive: boolean
}

const processes = new Set<Started>()
const folders = new Set<string>()

/** It is killed, and its shared memory removed, should this process end before it. */
export function killAtExit(started: Started): void {
  processes.add(started)
}

/** It is removed, should it be there still when this process ends. */
export function removeAtExit(folder: string): void {
  folders.add(folder)
}

/** The last net, for the event `exit`: what was ended in order is gone already. */
export function removeLeftovers(): void {
  const alive = [...processes].filter((started) => started.alive)
  const pids = alive.map((started) => started.pids.at(-1) as number)
  for (const pid of pids) kill(pid)
  const endMs = performance.now() + GONE_MS
  while (pids.some(runs) && performance.now() < endMs) Bun.sleepSync(AGAIN_MS)
  for (const folder of folders) {
    rmSync(folder, { recursive: true, force: true, maxRetries: REMOVE_TRIES })
  }
  const dead = new Set(
    [...processes].flatMap((started) => started.pids).filter((pid) => !runs(pid)),
  )
  for (const name of readdirSync(SHM)) {
    if (dead.has(Number(/^ckpt-(\d+)-/.exec(name)?.[1]))) rmSync(join(SHM, name), { force: true })
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // it has ended meanwhile
  }
}

/** One that has ended and was not waited for is a zombie, by `proc(5)`. */
function runs(pid: number): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}
