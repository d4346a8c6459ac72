import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stopProcess } from 'ckpt/cli/child-process'
import { freePort } from 'ckpt/daemon/cluster/testing/free-port'
import { outputOf } from './command.ts'
import { PeerServer } from './peer-server.ts'

/** What the benches are measured against, of PyPI. */
export const PEER = { name: 'checkpoint-engine', version: '0.4.2' } as const

const INSTALL = { timeoutMs: 600_000 } as const
const READY_MS = 120_000
const STOP_MS = 10_000
const LOG_CHARACTERS = 3000
const WORKER = join(import.meta.dir, '../../../test/python/checkpoint_engine_worker.py')

/**
 * Makes a virtual environment that also sees the packages of `python`, which has torch for CUDA, and installs the peer into it.
 *
 * @param wheels directory of the wheels to install; null: from PyPI
 * @returns its Python
 */
export async function installPeer(
  python: string,
  wheels: string | null,
  dir: string,
): Promise<string> {
  const venv = join(dir, 'venv')
  await outputOf([python, '-m', 'venv', '--without-pip', venv], INSTALL)
  const own = join(venv, 'bin/python')
  // not `--system-site-packages`: `python` may itself be of a virtual environment
  const sites = 'import site; print("\\n".join(p for p in site.getsitepackages()))'
  const [theirs, ours] = [
    await outputOf([python, '-c', sites], INSTALL),
    await outputOf([own, '-c', sites], INSTALL),
  ]
  writeFileSync(join((ours.split('\n')[0] as string).trim(), 'parent.pth'), theirs)
  const from =
    wheels === null
      ? [`${PEER.name}==${PEER.version}`, 'httpx', 'uvicorn', 'fastapi']
      : ['--no-index', '--no-deps', ...wheelsIn(wheels)]
  await outputOf([python, '-m', 'pip', '--python', own, 'install', '--quiet', ...from], INSTALL)
  return own
}

function wheelsIn(dir: string): string[] {
  const names = readdirSync(dir).filter((name) => name.endsWith('.whl'))
  if (names.length === 0) throw new Error(`--wheels ${dir}: there are no wheels`)
  return names.map((name) => join(dir, name))
}

/** The peer's own server for one rank, which ends with `stack`. */
export async function startPeer(
  stack: AsyncDisposableStack,
  python: string,
  bucketGib: number,
  dir: string,
): Promise<PeerServer> {
  const socket = join(dir, 'peer.sock')
  const port = freePort()
  const env = {
    RANK: '0',
    LOCAL_RANK: '0',
    WORLD_SIZE: '1',
    MASTER_ADDR: '127.0.0.1',
    // it listens at the port after this one
    MASTER_PORT: String(port - 1),
    PS_MAX_BUCKET_SIZE_GB: String(bucketGib),
  }
  const child = spawnLogged([python, '-m', 'checkpoint_engine', '--uds', socket], dir, env)
  stack.defer(() => child.stop())
  const peer = new PeerServer(socket, child.pid)
  await child.until(() => peer.answers())
  return peer
}

/** A torch process whose worker is the peer's own, unmodified, and copies into its parameters; where it listens. */
export async function startPeerEngine(
  stack: AsyncDisposableStack,
  python: string,
  dir: string,
): Promise<string> {
  const child = spawnLogged([python, WORKER, '--device', 'cuda', '--in-place'], dir, {})
  stack.defer(() => child.stop())
  let url: string | undefined
  await child.until(async () => {
    url = /ready (\S+)/.exec(child.log())?.[1]
    return url !== undefined
  })
  return url as string
}

interface LoggedProcess {
  readonly pid: number
  log(): string
  /** Waits until `ready` says so. @throws Error with its last words when it ends before or takes too long */
  until(ready: () => Promise<boolean>): Promise<void>
  stop(): Promise<void>
}

let started = 0

/** Its output goes into a file: nobody has to read it for it to go on. */
function spawnLogged(
  command: string[],
  dir: string,
  env: Readonly<Record<string, string>>,
): LoggedProcess {
  const path = join(dir, `process-${started++}.log`)
  const file = openSync(path, 'w')
  const child = Bun.spawn(command, {
    stdin: 'ignore',
    stdout: file,
    stderr: file,
    env: { ...process.env, ...env },
  })
  closeSync(file)
  const log = () => readFileSync(path, 'utf8')
  return {
    pid: child.pid,
    log,
    until: async (ready) => {
      const endMs = performance.now() + READY_MS
      while (!(await ready())) {
        const ended = child.exitCode !== null || child.signalCode !== null
        if (ended || performance.now() > endMs) {
          const what = ended ? 'has ended' : `was not ready within ${READY_MS / 1000} s`
          throw new Error(`${command.join(' ')} ${what}:\n${log().slice(-LOG_CHARACTERS)}`)
        }
        await Bun.sleep(100)
      }
    },
    stop: () => stopProcess(child, STOP_MS),
  }
}
