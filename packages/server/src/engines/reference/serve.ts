import { existsSync, lstatSync, unlinkSync } from 'node:fs'
import { CkptError } from '@ckpt/core'
import { type EngineOptions, ReferenceEngine } from './engine.ts'
import { engineRoutes } from './routes.ts'

/** Maps of addresses are small. */
const BODY_MAX_BYTES = 4 * 2 ** 20
/** Exit status of the fault `exit@K`. */
const FAULT_EXIT_STATUS = 70

export interface ReferenceEngineOptions extends EngineOptions {
  /** `HOST:PORT` (port 0: any free one) or `unix:/path`. */
  readonly listen: string
  /** Have LMDeploy's routes: `GET /update_weights_from_ipc` tells the keys of the devices; default false. */
  readonly tellDevices?: boolean
}

export interface RunningEngine {
  /** `http://HOST:PORT` or `unix:/path`. */
  readonly url: string
  /** Key of each rank in a map. */
  readonly keys: readonly string[]
  /** Ends the Workers, which leave what they wait for, and frees the weights. */
  close(): Promise<void>
}

type Address = { readonly unix: string } | { readonly hostname: string; readonly port: number }

/**
 * Starts a reference engine and its HTTP server. Throws `bad_request` for an option, `native_missing`, and what the device says.
 *
 * @example
 * const engine = await runReferenceEngine({
 *   listen: '127.0.0.1:0', tensorParallelSize: 2, devices: 'host', dialect: 'D4', faults: [],
 * })
 */
export async function runReferenceEngine(options: ReferenceEngineOptions): Promise<RunningEngine> {
  const address = parseListen(options.listen)
  if ('unix' in address) await clearStaleSocket(address.unix)
  const engine = await ReferenceEngine.start(options, () => process.exit(FAULT_EXIT_STATUS))
  const app = engineRoutes(engine, options.tellDevices ?? false)
  let server: ReturnType<typeof listen>
  try {
    server = listen(address, (request) => app.fetch(request))
  } catch (error) {
    await engine.close()
    throw new CkptError('cannot_listen', `cannot listen at ${options.listen}: ${String(error)}`)
  }
  const url = 'unix' in address ? `unix:${address.unix}` : urlOf(address.hostname, server.port)
  return {
    url,
    keys: engine.keys,
    close: async () => {
      await engine.close()
      await server.stop(true)
      if ('unix' in address && existsSync(address.unix)) unlinkSync(address.unix)
    },
  }
}

/** A request may be silent for as long as its own timeout: Bun's server must not cut it. */
function listen(address: Address, answer: (request: Request) => Response | Promise<Response>) {
  const common = { fetch: answer, maxRequestBodySize: BODY_MAX_BYTES, idleTimeout: 0 }
  if ('unix' in address) return Bun.serve({ ...common, unix: address.unix } as never)
  return Bun.serve({ ...common, hostname: address.hostname, port: address.port })
}

/** Removes the socket that a process which was killed has left. Throws `bad_request` when somebody listens at it. */
async function clearStaleSocket(path: string): Promise<void> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return
  const somebody = await Bun.connect({ unix: path, socket: { data() {} } }).catch(() => null)
  if (somebody === null) return unlinkSync(path)
  somebody.end()
  throw new CkptError('bad_request', `somebody listens at ${path} already`)
}

function urlOf(hostname: string, port: number | undefined): string {
  const host = hostname === '0.0.0.0' ? '127.0.0.1' : hostname === '::' ? '::1' : hostname
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** Throws `bad_request`. */
export function parseListen(text: string): Address {
  if (text.startsWith('unix:/')) return { unix: text.slice('unix:'.length) }
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text)
  const hostname = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (hostname === undefined || port > 65_535) {
    throw new CkptError('bad_request', `"${text}" is neither HOST:PORT nor unix:/path`)
  }
  return { hostname, port }
}
