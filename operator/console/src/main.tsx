// The page: asks for a token, then shows the models, or one of them.
import { render, type JSX } from "preact";
import { useState } from "preact/hooks";
import { forgetToken, get, keepToken, token } from "./api";
import { useLive } from "./live";
import { Model } from "./model";
import { Problem, Standing, asRefusal, figure } from "./parts";
import { link, usePlace } from "./routes";
import { Shown } from "./text";
import type { ModelList } from "./types";
import type { Refusal } from "./api";

const LIST = "console/api/v1/models";

function Login({ entered }: { entered: () => void }): JSX.Element {
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const field = (event.currentTarget as HTMLFormElement).elements.namedItem("token") as HTMLInputElement;
    keepToken(field.value.trim());
    try {
      await get<ModelList>(LIST);
      entered();
    } catch (error) {
      forgetToken();
      setRefusal(asRefusal(error));
    }
  };
  return (
    <main class="login">
      <h1>Espalier</h1>
      <form onSubmit={submit}>
        <label for="token">Token</label>
        <input id="token" name="token" type="password" autocomplete="off" required autofocus aria-describedby="which" />
        <button>Sign in</button>
      </form>
      <p class="note" id="which">
        A token of yours for the gateway: <code>kubectl create token NAME --audience espalier-gateway</code>, an API key of{" "}
        <code>espalier keys create</code>, or what <code>espalier dev</code> has printed. It stays in this tab, until you
        close it or sign out.
      </p>
      <Problem refusal={refusal} />
    </main>
  );
}

function Models(): JSX.Element {
  const { value, refusal, connection } = useLive("models", "console/api/v1/changes", (signal) =>
    get<ModelList>(LIST, signal),
  );
  return (
    <main>
      <h1>Models</h1>
      <Standing connection={connection} />
      <Problem refusal={refusal} />
      {value && !value.models.length && (
        <p>{value.user} may get no model here. Create a TrainableModel, or ask for a role that has get on them.</p>
      )}
      {value && value.models.length > 0 && (
        <table>
          <caption>What {value.user} may see</caption>
          <thead>
            <tr>
              {["model", "started from", "serves", "reward", "checkpoints", "runs", "ready"].map((name) => (
                <th scope="col">{name}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {value.models.map((model) => (
              <tr key={`${model.namespace}/${model.name}`}>
                <th scope="row">
                  <a href={link(model.namespace, model.name)}>
                    {model.namespace}/{model.name}
                  </a>
                </th>
                <td>
                  <Shown text={model.source} />
                </td>
                <td>{model.head || "base"}</td>
                <td class="number">{figure(model.reward)}</td>
                <td class="number">{model.checkpoints}</td>
                <td class="number">{model.runs}</td>
                <td>{model.ready ? `${model.ready.status}, ${model.ready.reason}` : "not seen yet"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </main>
  );
}

function Page(): JSX.Element {
  const [signedIn, setSignedIn] = useState(token() !== "");
  const place = usePlace();
  if (!signedIn) return <Login entered={() => setSignedIn(true)} />;
  const leave = (): void => {
    forgetToken();
    setSignedIn(false);
  };
  return (
    <>
      <header class="top">
        <a href="#/">Espalier</a>
        <button class="quiet" onClick={leave}>
          Sign out
        </button>
      </header>
      {place ? <Model place={place} key={`${place.namespace}/${place.name}`} /> : <Models />}
    </>
  );
}

const root = document.getElementById("app");
if (root) render(<Page />, root);
