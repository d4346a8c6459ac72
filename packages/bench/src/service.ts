import { join } from 'node:path'
import type { EngineTarget } from '@ckpt/core'
import { startCommand } from 'ckpt/cli/child-process'
import { DaemonClient, daemonAddress } from 'ckpt/cli/client'

/** Of a whole update. */
export const TIMEOUT_SECONDS = 120

/** `ckpt serve` as a process of its own. */
export interface DaemonProcess {
  readonly client: DaemonClient
  readonly pid: number
}

/** `ckpt serve` as a process of its own, which ends with `stack`. */
export async function startDaemon(
  stack: AsyncDisposableStack,
  devices: string,
  ranks: number,
  dir: string,
  flags: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<DaemonProcess> {
  const socket = join(dir, 'ckpt.sock')
  const where = ['--uds', socket, '--state-dir', join(dir, 'state')]
  const what = ['--devices', devices, '--ranks', String(ranks)]
  const daemon = await startCommand(['serve', ...where, ...what, ...flags], /"ready": ?true/, env)
  stack.defer(() => daemon.stop())
  return { client: new DaemonClient(daemonAddress(socket)), pid: daemon.pid }
}

/** `ckpt engine` as a process of its own, which ends with `stack`; where it listens. */
export async function startEngine(
  stack: AsyncDisposableStack,
  devices: string,
  ranks: number,
  flags: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  const where = ['--listen', '127.0.0.1:0', '--devices', devices]
  const engine = await startCommand(
    ['engine', ...where, '--tensor-parallel-size', String(ranks), ...flags],
    /"url": ?"([^"]+)"/,
    env,
  )
  stack.defer(() => engine.stop())
  return engine.ready
}

/** The engine as the target of an update, with all its ranks. */
export function targetOf(url: string, ranks: number): EngineTarget {
  const all = Array.from({ length: ranks }, (_, rank) => rank)
  return { url: `${url}/collective_rpc`, ranks: all, engine: 'vllm' }
}
