// Reads a JSON list of Kubernetes objects; writes a list with null for each that fits the schema of
// its kind, else what is wrong. A kind that no package here knows ends the program.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "serving.knative.dev": "@kubernetes-models/knative",
};

async function check({ apiVersion, kind, ...fields }) {
  const [group] = apiVersion.split("/");
  const models = await import(`${PACKAGES[group]}/${apiVersion}`);
  try {
    new models[kind](fields).validate();
    return null;
  } catch (error) {
    return error.message;
  }
}

const objects = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(await Promise.all(objects.map(check))));
