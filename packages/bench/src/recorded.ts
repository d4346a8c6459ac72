import { type } from 'arktype'

/** A figure that is not a number is null in JSON. */
const Figure = type('number | null')

/** What is read of a document of `bun run bench --json` that was kept; it may have more, as later versions do. */
export const RecordedDocument = type({
  ok: 'boolean',
  header: {
    date: /^\d{4}-\d{2}-\d{2}$/,
    command: 'string > 0',
    ckpt: 'string',
    bun: 'string',
    library: "'host' | 'cuda'",
    os: 'string',
    driver: 'string | null',
    cuda: 'string | null',
    devices: type({ name: 'string > 0' }).array().atLeastLength(1),
  },
  rows: type({
    bench: 'string > 0',
    case: 'string',
    p50_s: Figure,
    gb_per_s: Figure,
    limit_gb_per_s: Figure,
    claims: type({
      what: 'string > 0',
      figure: Figure,
      unit: 'string',
      must: "'at_least' | 'at_most'",
      bound: 'number',
      holds: 'boolean',
    }).array(),
  }).array(),
  compared: 'number.integer >= 0',
  wrong: 'number.integer >= 0',
  error: type({ code: 'string', message: 'string' }).or('null'),
})
export type RecordedDocument = typeof RecordedDocument.infer
export type RecordedRow = RecordedDocument['rows'][number]

/** The document of a JSON text. @throws Error that begins with `path` and says what is wrong with it */
export function parseRecorded(path: string, text: string): RecordedDocument {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new Error(`${path} is no JSON: ${(error as Error).message}`)
  }
  const document = RecordedDocument(value)
  if (!(document instanceof type.errors)) return document
  throw new Error(`${path} is no document of \`bun run bench --json\`: ${document.summary}`)
}
