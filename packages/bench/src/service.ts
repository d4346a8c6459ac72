import { join } from 'node:path'
import type {
  CheckpointDetail,
  EngineTarget,
  ErrorBody,
  RegisterAnswer,
  RegisterRequest,
  TraceAnswer,
  UpdateReport,
  UpdateRequest,
} from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { startCommand } from 'ckpt/cli/child-process'

/** A server with the routes of `ckpt serve`, or the first six of them, on a Unix socket. */
export class Service {
  readonly socket: string
  readonly pid: number

  constructor(socket: string, pid: number) {
    this.socket = socket
    this.pid = pid
  }

  register(name: string, request: RegisterRequest): Promise<RegisterAnswer> {
    return this.request('POST', `/v1/checkpoints/${name}/files`, request)
  }

  update(name: string, request: UpdateRequest): Promise<UpdateReport> {
    return this.request('POST', `/v1/checkpoints/${name}/update`, request)
  }

  gather(name: string): Promise<unknown> {
    return this.request('POST', `/v1/checkpoints/${name}/gather-metas`, {})
  }

  describe(name: string): Promise<CheckpointDetail> {
    return this.request('GET', `/v1/checkpoints/${name}`)
  }

  trace(updateId: string): Promise<TraceAnswer> {
    return this.request('GET', `/v1/updates/${updateId}/trace`)
  }

  drop(name: string): Promise<unknown> {
    return this.request('DELETE', `/v1/checkpoints/${name}?force=true`)
  }

  /** @throws CkptError what the server answers when it is not a success */
  async request<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await fetch(`http://localhost${path}`, {
      method,
      unix: this.socket,
      proxy: false,
      timeout: false,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      headers: { 'content-type': 'application/json' },
    })
    const text = await response.text()
    const answer = text === '' ? null : (JSON.parse(text) as T)
    if (response.ok) return answer as T
    const { error } = (answer ?? {}) as Partial<ErrorBody>
    if (error !== undefined) throw CkptError.from(error)
    throw new Error(`${method} ${path}: ${response.status} ${text.slice(0, 500)}`)
  }
}

/** `ckpt serve` as a process of its own, which ends with `stack`. */
export async function startDaemon(
  stack: AsyncDisposableStack,
  devices: string,
  ranks: number,
  dir: string,
): Promise<Service> {
  const socket = join(dir, 'ckpt.sock')
  const where = ['--uds', socket, '--state-dir', join(dir, 'state')]
  const what = ['--devices', devices, '--ranks', String(ranks)]
  const daemon = await startCommand(['serve', ...where, ...what], /"ready": ?true/)
  stack.defer(() => daemon.stop())
  return new Service(socket, daemon.pid)
}

/** `ckpt engine` as a process of its own, which ends with `stack`; where it listens. */
export async function startEngine(
  stack: AsyncDisposableStack,
  devices: string,
  ranks: number,
): Promise<string> {
  const where = ['--listen', '127.0.0.1:0', '--devices', devices]
  const engine = await startCommand(
    ['engine', ...where, '--tensor-parallel-size', String(ranks)],
    /"url": ?"([^"]+)"/,
  )
  stack.defer(() => engine.stop())
  return engine.ready
}

/** The engine as the target of an update, with all its ranks. */
export function targetOf(url: string, ranks: number): EngineTarget {
  const all = Array.from({ length: ranks }, (_, rank) => rank)
  return { url: `${url}/collective_rpc`, ranks: all, engine: 'vllm' }
}
