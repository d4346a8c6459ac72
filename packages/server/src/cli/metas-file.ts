import { CkptError, Metas, parseBody } from '@ckpt/core'
import type { Type } from 'arktype'

/** Writes what `--load-metas-file` of another instance reads: the JSON of `GET /v1/metas`. */
export async function saveMetas(path: string, metas: Metas): Promise<void> {
  await Bun.write(path, `${JSON.stringify(metas)}\n`)
}

/**
 * @throws CkptError `file_not_found`; `format_not_supported` for the pickles of checkpoint-engine's own client and for what
 * is no JSON; `bad_request` when the JSON is something else
 */
export async function loadMetas(path: string): Promise<Metas> {
  const file = Bun.file(path)
  if (!(await file.exists()))
    throw new CkptError('file_not_found', `there is no metas file ${path}`)
  const bytes = await file.bytes()
  const accepted = 'accepted is the JSON that --save-metas-file and GET /v1/metas give'
  // the PROTO opcode that starts every pickle since protocol 2
  if (bytes[0] === 0x80) {
    throw new CkptError(
      'format_not_supported',
      `${path} is a pickle, which is never loaded: ${accepted}`,
    )
  }
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw new CkptError(
      'format_not_supported',
      `${path} is no JSON (${(error as Error).message}): ${accepted}`,
    )
  }
  // the parameters of ArkType's Type are invariant, and this schema has a scope of its own
  return parseBody(Metas as unknown as Type, value) as Metas
}
