/** Every HTTP body and answer: value and type carry the same name, requests reject unknown keys. */
export {
  CheckpointName,
  DialectName,
  ErrorBody,
  FailureBody,
  OPEN_TIMEOUT_SECONDS,
  PAUSE_TIMEOUT_SECONDS,
  UPDATE_TIMEOUT_SECONDS,
  UpdateId,
} from './bounds.ts'
export * from './checkpoint-schemas.ts'
export * from './engine-map-schemas.ts'
export * from './engine-schemas.ts'
export * from './metas-schemas.ts'
export { parseBody } from './parse-body.ts'
export * from './status-schemas.ts'
export * from './update-schemas.ts'
