import { type ArkErrors, type Type, type } from 'arktype'
import { CkptError } from './errors.ts'

/** The most faults that one message names. */
const FAULTS_SHOWN = 3
const FAULT_CHARACTERS = 200

/**
 * Checks a parsed JSON body against a schema of `schemas.ts`.
 *
 * ```ts
 * const request = parseBody(RegisterRequest, await context.req.json())
 * ```
 *
 * @throws CkptError `bad_request` with what is wrong, such as `files must be an array (was
 * missing)`
 */
export function parseBody<const S extends Type>(schema: S, value: unknown): S['infer'] {
  const parsed = schema(value)
  if (!(parsed instanceof type.errors)) return parsed as S['infer']
  throw new CkptError('bad_request', describeErrors(parsed))
}

function describeErrors(errors: ArkErrors): string {
  const faults: string[] = []
  for (const error of errors) {
    if (faults.length === FAULTS_SHOWN) break
    // ArkType says "x must be removed" of a key that a schema does not know
    const fault =
      error.expected === 'removed'
        ? `unknown field '${error.propString}'`
        : error.path.length === 0
          ? `the body ${error.message}`
          : error.message
    faults.push(fault.length > FAULT_CHARACTERS ? `${fault.slice(0, FAULT_CHARACTERS)}...` : fault)
  }
  const rest = errors.length - faults.length
  if (rest > 0) faults.push(`and ${rest} more`)
  return faults.join('; ')
}
