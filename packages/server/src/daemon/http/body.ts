import { CkptError, parseBody } from '@ckpt/core'
import type { Type } from 'arktype'
import type { Context, MiddlewareHandler } from 'hono'
import type { DaemonEnv } from '../context.ts'

const MIB = 1024 ** 2
/** Lists of files: a hundred thousand paths. */
export const BODY_BYTES_MAX = 16 * MIB
/** Metas and lists of tensors: half a million rows. */
export const LARGE_BODY_BYTES_MAX = 64 * MIB

/** First byte of every pickle of protocol 2 and later. */
const PICKLE_PROTO = 0x80

/** A schema of ArkType, whatever its scope: the parameters of `Type` itself are invariant. */
interface BodySchema<In, Out> {
  readonly inferIn: In
  readonly infer: Out
}

interface JsonInput<In, Out> {
  in: { json: In }
  out: { json: Out }
}

/** The status of an answer that has no code of its own: a body that is too large. */
export class BodyTooLarge extends CkptError {
  override get status(): number {
    return 413
  }
}

/**
 * Reads the body as JSON, whatever its content type says, and checks it against the schema. An empty body is `{}`.
 * From here on the request may be silent as long as it likes.
 *
 * ```ts
 * app.post('/files', json(RegisterRequest), (c) => c.json(register(c.req.valid('json'))))
 * ```
 */
export function json<In, Out>(
  schema: BodySchema<In, Out>,
  bytesMax: number = BODY_BYTES_MAX,
): MiddlewareHandler<DaemonEnv, string, JsonInput<In, Out>> {
  return async (context, next) => {
    const body = await readBody(context, bytesMax)
    context.req.addValidatedData(
      'json',
      parseBody(schema as unknown as Type, parseJson(body)) as object,
    )
    keepOpen(context)
    await next()
  }
}

/**
 * Bun's server cuts a request that is silent for 10 s. Called once the body is there, so that a client which sends
 * nothing is still cut.
 */
export function keepOpen(context: Context<DaemonEnv>): void {
  context.env.server?.timeout(context.req.raw, 0)
}

/** @throws BodyTooLarge */
export async function readBody(context: Context<DaemonEnv>, bytesMax: number): Promise<Uint8Array> {
  const told = Number(context.req.header('content-length') ?? 0)
  const stream = context.req.raw.body
  if (told > bytesMax) throw tooLarge(bytesMax)
  if (stream === null) return new Uint8Array()
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of stream) {
    bytes += chunk.byteLength
    if (bytes > bytesMax) throw tooLarge(bytesMax)
    chunks.push(chunk)
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)
}

function parseJson(body: Uint8Array): unknown {
  if (body.byteLength === 0) return {}
  if (body[0] === PICKLE_PROTO) {
    throw new CkptError(
      'format_not_supported',
      'the body is a pickle, which this daemon never loads; send JSON (for metas: what GET /v1/metas answers)',
    )
  }
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body))
  } catch (error) {
    throw new CkptError('bad_request', `the body is not JSON: ${(error as Error).message}`)
  }
  // ArkType takes an empty array for an object whose fields are all optional
  if (Array.isArray(value)) {
    throw new CkptError('bad_request', 'the body must be an object (was an array)')
  }
  return value
}

function tooLarge(bytesMax: number): BodyTooLarge {
  return new BodyTooLarge('bad_request', `the body has more than ${bytesMax / MIB} MiB`)
}
